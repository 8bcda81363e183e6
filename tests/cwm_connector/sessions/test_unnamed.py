"""sessions/unnamed.py: clients that send no session id are recognised by how their conversations began."""

import hashlib
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cwm_connector.core.types import Micros
from cwm_connector.sessions import unnamed
from cwm_connector.sessions.index import EXPIRES_AFTER
from cwm_connector.sessions.unnamed import Beginnings, session_of_salt
from tests.cwm_connector.sessions.samples import BLOCK, Clock, Request, finish, index, nobody

SYSTEM = list(range(100, 132))
"""What every conversation begins with: eight blocks."""


def test_a_client_that_says_nothing_has_a_session_that_goes_on_with_it() -> None:
    sessions = index()
    first = [*SYSTEM, *range(10)]
    finish(sessions, nobody("r1", [*first, 50, 51, 52]))
    finish(sessions, nobody("r2", [*first, 50, 51, 52, *range(60, 70)]))
    (view,) = sessions.views()
    assert view.heads == ("h1",) and view.token_count == 54
    assert sessions.snapshot(view.session_id, None).session_id == view.session_id


def test_its_name_is_a_session_id_that_tells_when_it_began() -> None:
    sessions = index(clock=lambda: Micros(1_767_225_600_000_000))
    finish(sessions, nobody("r", list(range(10))))
    (view,) = sessions.views()
    assert re.fullmatch(r"anon-20260101-000000-[0-9a-f]{6}", view.session_id)


def test_another_question_behind_the_same_system_prompt_is_another_session() -> None:
    sessions = index()
    finish(sessions, nobody("r1", [*SYSTEM, 1, 2, 3, 9, 9, 9, 9]))
    finish(sessions, nobody("r2", [*SYSTEM, 1, 2, 4, 9, 9, 9, 9]))
    finish(sessions, nobody("r1-on", [*SYSTEM, 1, 2, 3, 9, 9, 9, 9, *range(20)]))
    assert sorted(view.token_count for view in sessions.views()) == [38, 58]


def test_a_short_question_behind_a_long_system_prompt_is_told_apart() -> None:
    sessions = index()
    for question in (1, 2, 3):
        finish(sessions, nobody(f"r{question}", [*range(1000, 1200), question, 9, 9, 9, 9]))
    assert len(sessions.views()) == 3


def test_a_template_that_renders_the_opened_answer_otherwise_does_not_part_a_conversation() -> None:
    sessions = index()
    finish(sessions, nobody("r1", [*SYSTEM, 1, 2, 3, 70, 71, 72, 73]))
    finish(sessions, nobody("r2", [*SYSTEM, 1, 2, 3, 80, 81, *range(20)]))
    assert len(sessions.views()) == 1


def test_an_edited_later_message_stays_in_its_session() -> None:
    sessions = index()
    finish(sessions, nobody("r1", [*SYSTEM, *range(10)]))
    finish(sessions, nobody("r2", [*SYSTEM, *range(10), *range(200, 240)]))
    finish(sessions, nobody("edited", [*SYSTEM, *range(10), *range(300, 310)]))
    assert len(sessions.views()) == 1


def test_conversations_shorter_than_a_block_are_told_apart_as_well() -> None:
    sessions = index(block_tokens=128)
    for first in (1, 2):
        sessions.request_added(nobody(f"r{first}", [*range(100, 130), first, 9, 9, 9, 9]))
    again = nobody("again", [*range(100, 130), 2, 9, 9, 9, 9, *range(50)])
    sessions.request_added(again)
    newest, oldest = sessions.views()
    assert sessions.session_id_of(again) == newest.session_id != oldest.session_id


def test_of_two_beginnings_the_longer_one_counts() -> None:
    sessions = index()
    long = [*SYSTEM, *range(40)]
    finish(sessions, nobody("long", long))
    finish(sessions, nobody("short", SYSTEM))
    on = nobody("on", [*long, 1, 2, 3])
    sessions.request_added(on)
    (running,) = [view for view in sessions.views() if view.running]
    assert running.token_count == len(long) - 1


def test_of_two_beginnings_within_one_block_the_longer_one_counts() -> None:
    sessions = index(block_tokens=128)
    for request_id, size in (("long", 60), ("short", 40)):
        sessions.request_added(nobody(request_id, list(range(size))))
    on = nobody("on", list(range(70)))
    sessions.request_added(on)
    assert sessions.session_id_of(on) == sessions.session_id_of(nobody("long", []))


def test_of_too_many_alike_the_first_is_not_recognised_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unnamed, "MAX_ALIKE", 2)
    beginnings = Beginnings(BLOCK)
    talks = [nobody(f"r{number}", [*SYSTEM, number, number, 9, 9, 9, 9]) for number in range(3)]
    for talk in talks:
        beginnings.add(talk.request_id, talk)
    assert [beginnings.find(talk) for talk in talks] == [None, "r1", "r2"]


class Counted(list[bytes]):
    """Hashes that count how many of them were read."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return super().__getitem__(at)

    def __iter__(self) -> Iterator[bytes]:
        self.reads += len(self)
        return super().__iter__()


def test_a_long_prompt_is_looked_up_where_a_beginning_ends_and_nowhere_else() -> None:
    beginnings = Beginnings(BLOCK)
    short, long = [*SYSTEM, 1, 2, 3, 4, 9, 9, 9, 9], [*SYSTEM, *range(200, 400)]
    for number, talk in enumerate((short, [*SYSTEM, 5, 6, 7, 8, 9, 9, 9, 9], long)):
        beginnings.add(f"r{number}", nobody("r", talk))
    hashes = Counted(nobody("on", [*long, *range(500, 900)]).block_hashes)
    for talk, name in ((long, "r2"), (short, "r0"), ([0, 0, 0, 0], None)):
        request = SimpleNamespace(all_token_ids=[*talk, *range(500, 900)], block_hashes=hashes)
        hashes[:] = nobody("on", request.all_token_ids).block_hashes
        hashes.reads = 0
        assert beginnings.find(request) == name
        assert hashes.reads <= 2


def test_of_conversations_that_are_dropped_nothing_is_kept() -> None:
    beginnings = Beginnings(BLOCK)
    for number in range(3):
        beginnings.add(f"r{number}", nobody("r", [*SYSTEM, number, 9, 9, 9, 9]))
        beginnings.remove(f"r{number}")
        beginnings.remove("never there")
    assert not beginnings._alike and not beginnings._block_of
    assert not beginnings._with_blocks and not beginnings._lengths


def test_who_says_anything_is_never_taken_for_anonymous_nor_the_other_way_round() -> None:
    sessions = index()
    words = [*SYSTEM, *range(10)]
    told = [
        nobody("silent", words),
        Request("named", words, session_id="alice"),
        Request("illegal", words, session_id="x" * 1025),
        nobody("salted", words, cache_salt="s3cret"),
    ]
    for one in told:
        finish(sessions, one)
    finish(sessions, nobody("silent-on", [*words, *range(20)]))
    counts = {view.session_id: view.token_count for view in sessions.views()}
    (anonymous,) = [name for name in counts if name.startswith("anon-")]
    assert counts == {anonymous: 61, "alice": 41, session_of_salt("s3cret"): 41}


def test_an_anonymous_session_that_is_called_by_its_name_is_anonymous_no_more() -> None:
    sessions = index()
    words = [*SYSTEM, *range(10)]
    finish(sessions, nobody("r1", words))
    (view,) = sessions.views()
    finish(sessions, Request("named", [*words, 1, 2, 3, 4], session_id=view.session_id))
    finish(sessions, nobody("r2", [*words, 5, 6, 7, 8]))
    counts = {each.session_id: each.token_count for each in sessions.views()}
    assert len(counts) == 2 and counts[view.session_id] == 45


def test_what_could_never_be_frozen_opens_no_anonymous_session() -> None:
    sessions = index()
    place = SimpleNamespace(offset=2, length=3)
    chosen = SimpleNamespace(modality="image", identifier="holiday", mm_hash="holiday", mm_position=place)
    finish(sessions, nobody("image", list(range(10)), mm_features=[chosen]))
    finish(sessions, nobody("short", [1, 2, 3]))
    assert sessions.views() == ()


def test_anonymous_sessions_are_bounded_and_push_no_named_one_out() -> None:
    sessions = index(max_bytes=60_000, chunk_tokens=8)
    finish(sessions, Request("named", list(range(10))))
    for number in range(100):
        finish(sessions, nobody(f"r{number}", list(range(100 * number, 100 * number + 10))))
    assert 5 < len(sessions.views()) < 20 and sessions.views()[-1].session_id == "alice"
    assert sessions.size_bytes <= 60_000


def test_an_expired_anonymous_session_takes_hardly_any_memory() -> None:
    clock = Clock()
    sessions = index(clock=clock)
    finish(sessions, nobody("old", list(range(9_000))))
    before = sessions.size_bytes
    clock.now += EXPIRES_AFTER + 10
    sessions.expire(lambda block: False)
    assert sessions.size_bytes < before / 5 and sessions.views()[0].expired


def test_finding_a_long_conversation_among_a_thousand_is_cheap() -> None:
    sessions, size = index(block_tokens=16), 100_000
    hashes = [hashlib.sha256(str(at).encode()).digest() for at in range(size // 16)]

    class Long(Request):
        block_hashes = hashes

    for number in range(1000):
        finish(sessions, nobody(f"r{number}", list(range(100 * number, 100 * number + 40))))
    took = []
    for number in range(20):
        one = Long(f"long{number}", [number] * size, session_id=None)
        began = time.perf_counter()
        sessions.request_added(one)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.01
