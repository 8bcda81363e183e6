"""step/surveys.py: sessions that come and go while they are listed."""

from itertools import islice

from tests.cwm_connector.step.test_scheduler import Side
from tests.support.surveys import everything
from tests.support.vllm_parts import request


def serve(side: Side, *names: str) -> None:
    for at, name in enumerate(names):
        side.serve(request(range(1000 * at, 1000 * at + 64), name, session_id=name))


def test_each_session_is_listed_once_although_others_speak_meanwhile() -> None:
    side = Side()
    serve(side, "a", "b", "c", "d")
    listing = side.scheduler.session_views()
    first = everything(islice(listing, 2))
    serve(side, "a", "d", "new")
    names = [view.session_id for view, _ in [*first, *everything(listing)]]
    assert names == ["d", "c", "b", "a"]


def test_a_session_that_is_dropped_meanwhile_is_left_out() -> None:
    side = Side()
    serve(side, "a", "b")
    listing = side.scheduler.session_views()
    next(listing)
    side.sessions._drop("a")
    assert everything(listing) == []


def test_a_part_of_a_listing_is_one_session_and_a_part_of_a_search_too() -> None:
    side = Side()
    for name in ("a", "b", "c"):
        side.serve(request(range(256), name, session_id=name))
    assert [len(part) for part in side.scheduler.session_views()] == [1, 1, 1]
    assert max(len(part) for part in side.scheduler.freezable(0.25)) <= 1
