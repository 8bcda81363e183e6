"""The index takes a bounded number of bytes, and it counts them honestly."""

import gc
import hashlib
import tracemalloc
from typing import Any

import pytest

from cwm_connector.sessions.index import SessionIndex
from tests.cwm_connector.sessions.samples import Request, nobody
from tests.cwm_connector.sessions.talk import Talk, talk, words

__all__ = ["talk"]

BLOCK = 16


class Long(Request):
    """A request whose hashes are made quickly and are as long as vLLM's."""

    @property
    def block_hashes(self) -> list[bytes]:
        salt = repr((self.cache_salt, self.session_id, self.all_token_ids[0])).encode()
        return [hashlib.sha256(salt + at.to_bytes(8)).digest() for at in range(len(self.all_token_ids) // BLOCK)]


def serve(index: SessionIndex, one: Any) -> None:
    index.request_added(one)
    index.request_finished(one)
    while not index.is_packed:
        index.pack()


def measured(index: SessionIndex, requests: Any) -> int:
    """Return the bytes that Python allocates for what the index keeps of the requests."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for one in requests:
        serve(index, one)
    del one
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


def new_index(max_bytes: int) -> SessionIndex:
    return SessionIndex("m", BLOCK, lambda salt: None, max_bytes=max_bytes)


@pytest.mark.parametrize("named", [True, False], ids=["named", "anonymous"])
def test_ten_thousand_sessions_stay_within_the_bound(named: bool) -> None:
    bound = 20_000_000
    index = new_index(bound)
    requests = (
        Long(f"r{number}", list(range(number * 100, number * 100 + 40)), session_id=f"s{number}" if named else None)
        for number in range(10_000)
    )
    taken = measured(index, requests)
    assert len(index.views()) > 3_000
    assert index.size_bytes <= bound and taken <= 1.25 * index.size_bytes


def test_heads_of_128k_tokens_stay_within_the_bound() -> None:
    bound = 8_000_000
    index = new_index(bound)
    requests = (Long(f"r{at}", [at, *range(131_071)], session_id=f"s{at}") for at in range(20))
    taken = measured(index, requests)
    assert 5 < len(index.views()) < 20, "a head of 128k tokens takes 0.8 MiB"
    assert index.size_bytes <= bound and taken <= 1.25 * index.size_bytes


def test_many_heads_of_one_session_take_at_most_its_share() -> None:
    index = new_index(8_000_000)
    main = Long("main", list(range(100_000)))
    serve(index, main)
    requests = (Long(f"r{at}", [-at, *range(16_000)], session_id=f"alice/a{at}") for at in range(1, 50))
    taken = measured(index, requests)
    assert index.size_bytes <= 2_000_000 and taken <= 1.25 * index.size_bytes
    assert index.snapshot("alice", None).head == "h1"
    assert len(index.views()[0].heads) > 5


def test_branches_of_a_long_conversation_cost_their_tails(talk: Talk) -> None:
    said = talk.say(words(1, 60_000), [])
    before = talk.index.size_bytes
    for number in range(20):
        talk.say([*said[: 50_000 + 16 * number], *words(2 + number, 100)], [])
    assert len(talk.index.views()[0].heads) == 21
    assert talk.index.size_bytes - before < 0.3 * before


def test_ten_thousand_tiny_requests_beside_a_long_conversation_leave_it_alone(talk: Talk) -> None:
    said = talk.say(words(1, 4000), words(2, 100))
    anonymous = talk.say(words(3, 4000), words(4, 100), None)
    for number in range(10_000):
        serve(talk.index, nobody(f"t{number}", [1, 2, number], cache_salt=f"salt{number}"))
        serve(talk.index, Request(f"u{number}", [1, 2, number], session_id=f"tiny{number}"))
        serve(talk.index, nobody(f"a{number}", [1, 2, number]))
    assert talk.takes() == said
    (name,) = [view.session_id for view in talk.index.views() if view.session_id.startswith("anon-")]
    assert talk.takes(name) == anonymous
    assert len(talk.index.views()) < 1100


def test_sessions_of_less_than_a_chunk_go_before_a_longer_one() -> None:
    index = new_index(1_000_000)
    serve(index, Long("long", list(range(4000))))
    for number in range(2_000):
        serve(index, Long(f"r{number}", [number, *range(39)], session_id=None, cache_salt=f"salt{number}"))
    assert index.snapshot("alice", None).head == "h1"
    assert 100 < len(index.views()) < 300


def test_a_session_that_is_answered_goes_last_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    index = new_index(300_000)
    first, second = (Long(name, [*range(at, at + 8000)], session_id=name) for at, name in ((0, "one"), (9000, "two")))
    index.request_added(first)
    serve(index, second)
    for at in range(10):
        serve(index, Long(f"r{at}", [*range(10_000 * at, 10_000 * at + 8000)], session_id=f"s{at}"))
    assert {"one"} < {view.session_id for view in index.views()} and "two" not in str(index.views())
    assert not caplog.records
    running = [Long(f"p{at}", [*range(10_000 * at, 10_000 * at + 8000)], session_id=f"p{at}") for at in range(100)]
    for one in running:
        index.request_added(one)
    assert any("although it was being answered" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("turned_on_later", [False, True])
def test_a_session_with_unfrozen_tokens_goes_last_while_auto_freeze_is_on(
    caplog: pytest.LogCaptureFixture, turned_on_later: bool
) -> None:
    index = new_index(300_000)
    index.protect_unfrozen(not turned_on_later)
    for at, name in enumerate(("unfrozen", "frozen")):
        serve(index, Long(name, [*range(9000 * at, 9000 * at + 8000)], session_id=name))
    snapshot = index.snapshot("frozen", None)
    list(index.mark_frozen("frozen", snapshot.token_ids, snapshot.block_hashes))
    index.protect_unfrozen(True)
    at = 0
    while any(view.session_id == "frozen" for view in index.views()):
        at += 1
        serve(index, Long(f"r{at}", [*range(at, at + 8000)], session_id=f"s{at}"))
    assert any(view.session_id == "unfrozen" for view in index.views()) and not caplog.records
    while any(view.session_id == "unfrozen" for view in index.views()):
        at += 1
        serve(index, Long(f"r{at}", [*range(at, at + 8000)], session_id=f"s{at}"))
    logged = [record.getMessage() for record in caplog.records]
    assert any("unfrozen" in line and "no window holds" in line for line in logged)
