"""bounds.py: in which order sessions are dropped when their classes change."""

import pytest

from cwm_connector.sessions.bounds import EvictionClass, EvictionQueue
from cwm_connector.sessions.index import SessionIndex
from tests.cwm_connector.sessions.samples import Request
from tests.cwm_connector.sessions.samples import index as new_index


class Classes:
    """The class of each session, as a test sets it."""

    def __init__(self, *sessions: str) -> None:
        self.of = dict.fromkeys(sessions, EvictionClass.NAMED)
        self.queue = EvictionQueue(self.of.__getitem__)
        for session in sessions:
            self.queue.used(session)

    def order(self) -> list[str]:
        """Drop all sessions, one after the other."""
        dropped = []
        while (found := self.queue.next()) is not None:
            dropped.append(found[0])
            self.queue.remove(found[0])
        return dropped


def test_sessions_whose_class_has_risen_are_dropped_in_the_order_of_their_last_use() -> None:
    classes = Classes("a", "b", "c", "d", "e")
    classes.of |= dict.fromkeys("abce", EvictionClass.UNFROZEN)
    classes.queue.used("e")
    assert classes.order() == ["d", "a", "b", "c", "e"]


def test_a_change_of_class_is_no_use_of_the_session() -> None:
    classes = Classes("a", "b", "c")
    for now in (EvictionClass.UNFROZEN, EvictionClass.NAMED):
        classes.of["a"] = now
        classes.queue.changed("a")
    assert classes.order() == ["a", "b", "c"]


@pytest.mark.parametrize("sessions", [10, 300])
def test_where_all_have_risen_the_one_that_was_unused_for_longest_goes_first(sessions: int) -> None:
    names = [f"s{number:03}" for number in range(sessions)]
    classes = Classes(*names)
    classes.of |= dict.fromkeys(names, EvictionClass.UNFROZEN)
    assert classes.order() == names


def test_a_session_that_is_used_while_it_waits_goes_later() -> None:
    classes = Classes("a", "b", "c")
    classes.queue.used("a")
    assert classes.queue.count(EvictionClass.NAMED) == 3
    assert classes.order() == ["b", "c", "a"] and classes.queue.next() is None


TOKENS = 320


def serve(index: SessionIndex, name: str, number: int) -> None:
    """Serve a request with tokens of its own."""
    one = Request(name, [*range(1000 + 500 * number, 1000 + 500 * number + TOKENS)], session_id=name)
    index.request_added(one)
    index.request_finished(one)
    while not index.is_packed:
        index.pack()


def index_for(sessions: int) -> SessionIndex:
    """Return an index that has room for about so many of them."""
    one = new_index()
    serve(one, "s0", 0)
    return new_index(max_bytes=(sessions + 1) * one.size_bytes)


def test_sessions_of_before_auto_freeze_are_dropped_by_age_once_it_is_on() -> None:
    index = index_for(4)
    names = [f"s{number}" for number in range(7)]
    for number, name in enumerate(names):
        index.protect_unfrozen(number >= 3)
        serve(index, name, number)
    there = {view.session_id for view in index.views()}
    assert 2 < len(there) < 7 and there == set(names[-len(there) :])


def test_a_freeze_is_no_use_of_its_session() -> None:
    index = index_for(4)
    for number in range(3):
        serve(index, f"s{number}", number)
    snapshot = index.snapshot("s0", None)
    list(index.mark_frozen("s0", snapshot.token_ids, snapshot.block_hashes))
    names = [f"s{number}" for number in range(7)]
    for number in range(3, 7):
        serve(index, names[number], number)
    there = {view.session_id for view in index.views()}
    assert 2 < len(there) < 7 and there == set(names[-len(there) :])
