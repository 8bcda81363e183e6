"""sessions/index.py: who is speaking, and which chain a freeze means."""

import hashlib
import re
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import Micros, salt_hash
from cwm_connector.sessions import index as sessions_module
from cwm_connector.sessions import unnamed
from cwm_connector.sessions.heads import MAX_HEADS
from cwm_connector.sessions.index import EXPIRES_AFTER, SessionIndex, session_of_salt
from cwm_connector.sessions.unnamed import Beginnings

BLOCK = 4


@dataclass
class Request:
    """The fields of vLLM's Request that a session index reads (test_compat.py holds vLLM to having them)."""

    request_id: str
    all_token_ids: list[int]
    session_id: str | None = "alice"
    cache_salt: str | None = None
    num_computed_tokens: int = 0
    num_in_flight_tokens: int = 0
    lora_request: Any = None
    mm_features: list[Any] = field(default_factory=list)
    prompt_embeds: Any = None

    def __post_init__(self) -> None:
        self.num_computed_tokens = self.num_computed_tokens or len(self.all_token_ids) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def block_hashes(self) -> list[bytes]:
        ends = range(BLOCK, len(self.all_token_ids) + 1, BLOCK)
        return [repr((self.cache_salt, self.all_token_ids[:end])).encode() for end in ends]


def index(thawed: dict[bytes, str] | None = None, block_tokens: int = BLOCK, **more: Any) -> SessionIndex:
    return SessionIndex("model", block_tokens, (thawed or {}).get, **more)


def finish(sessions: SessionIndex, request: Any) -> None:
    sessions.request_added(request)
    sessions.request_finished(request)


def test_a_finished_request_can_be_frozen_up_to_its_last_computed_token() -> None:
    sessions = index()
    finish(sessions, Request("r", list(range(10))))
    head = sessions.snapshot("alice", None)
    assert list(head.token_ids) == list(range(9))
    assert len(head.block_hashes) == 2


def test_the_next_turn_extends_the_same_head() -> None:
    sessions = index()
    finish(sessions, Request("r1", list(range(10))))
    finish(sessions, Request("r2", list(range(20))))
    (view,) = sessions.views()
    assert view.heads == ("h1",) and view.token_count == 19


def test_an_unrelated_chain_is_a_head_of_its_own_and_the_last_one_is_meant() -> None:
    sessions = index()
    finish(sessions, Request("r1", list(range(20))))
    finish(sessions, Request("title", list(range(100, 110))))
    newest, first = sessions.snapshot("alice", None), sessions.snapshot("alice", "h1")
    assert newest.head == "h2"
    assert len(first.token_ids) == 19
    with pytest.raises(CWMError, match=r"CWM-2001.*h1, h2"):
        sessions.snapshot("alice", "h9")


def test_a_branch_that_keeps_less_than_half_opens_a_head() -> None:
    sessions = index()
    finish(sessions, Request("stem", list(range(40))))
    finish(sessions, Request("other", [*range(8), *range(500, 530)]))
    (view,) = sessions.views()
    assert view.heads == ("h1", "h2")


def test_a_running_request_counts_as_soon_as_it_is_ahead() -> None:
    sessions = index()
    finish(sessions, Request("r1", list(range(10))))
    running = Request("r2", list(range(30)), num_computed_tokens=6)
    sessions.request_added(running)
    behind = sessions.snapshot("alice", None)
    assert len(behind.token_ids) == 9
    running.num_computed_tokens = 24
    ahead = sessions.snapshot("alice", None)
    assert (ahead.head, len(ahead.token_ids)) == ("h1", 24)


def test_tokens_of_a_step_under_way_are_left_out() -> None:
    sessions = index()
    sessions.request_added(Request("r", list(range(30)), num_computed_tokens=13, num_in_flight_tokens=4))
    head = sessions.snapshot("alice", None)
    assert len(head.token_ids) == 9


def test_a_first_request_can_be_frozen_while_it_runs() -> None:
    sessions = index()
    sessions.request_added(Request("r", list(range(30)), num_computed_tokens=13))
    head = sessions.snapshot("alice", None)
    assert len(head.block_hashes) == 3


def test_a_salt_without_a_session_id_is_a_session_and_is_shown_hashed() -> None:
    sessions = index()
    finish(sessions, Request("r", list(range(10)), session_id=None, cache_salt="s3cret"))
    (view,) = sessions.views()
    assert view.session_id == session_of_salt("s3cret") and "s3cret" not in view.session_id
    assert sessions.snapshot("s3cret", None).session_id == view.session_id


def test_a_thawed_salt_belongs_to_the_session_it_was_thawed_into() -> None:
    sessions = index({salt_hash("cwm-x"): "alice"})
    finish(sessions, Request("r", list(range(10)), session_id=None, cache_salt="cwm-x"))
    assert [view.session_id for view in sessions.views()] == ["alice"]


def test_what_is_no_session_id_makes_no_session() -> None:
    sessions = index()
    for number, illegal in enumerate(("no spaces", "/head", "a/b/c", "x" * 129)):
        finish(sessions, Request(f"r{number}", list(range(10)), session_id=illegal))
    assert sessions.views() == ()


def test_adapters_and_images_mark_the_head_as_not_text_only() -> None:
    sessions = index()
    finish(sessions, Request("r", list(range(10)), lora_request=object()))
    finish(sessions, Request("later", list(range(20))))
    sessions.request_added(Request("running", list(range(30))))
    head = sessions.snapshot("alice", None)
    assert len(head.token_ids) == 29 and not head.text_only


def test_heads_are_bounded() -> None:
    sessions = index()
    for number in range(MAX_HEADS + 5):
        finish(sessions, Request(f"r{number}", list(range(1000 * number, 1000 * number + 10))))
    (view,) = sessions.views()
    assert len(view.heads) == MAX_HEADS and view.heads[-1] == f"h{MAX_HEADS + 5}"


def test_a_session_without_a_full_block_can_t_be_frozen_yet() -> None:
    sessions = index()
    finish(sessions, Request("r", [1, 2, 3]))
    with pytest.raises(CWMError, match="CWM-3001"):
        sessions.snapshot("alice", None)


def test_an_unknown_session_is_said_to_be_unknown() -> None:
    with pytest.raises(CWMError, match=r"CWM-2001.*session_list"):
        index().snapshot("nobody", None)


# --- subagents -------------------------------------------------------------------------------------------------------


def test_a_subagent_is_a_head_by_its_own_name_however_alike_it_is() -> None:
    sessions = index()
    finish(sessions, Request("main", list(range(40))))
    finish(sessions, Request("agent", [*range(36), 7, 7, 7, 7, 7], session_id="alice/a1b2"))
    finish(sessions, Request("agent-on", [*range(36), 7, 7, 7, 7, 7, 8, 8, 8, 8], session_id="alice/a1b2"))
    (view,) = sessions.views()
    assert view.heads == ("h1", "a1b2")
    assert len(sessions.snapshot("alice", "a1b2").token_ids) == 44


def test_a_session_is_meant_by_its_own_head_even_if_a_subagent_spoke_last() -> None:
    sessions = index()
    finish(sessions, Request("main", list(range(40))))
    finish(sessions, Request("agent", list(range(100, 120)), session_id="alice/a1b2"))
    sessions.request_added(Request("running", list(range(200, 260)), session_id="alice/c3d4"))
    (view,) = sessions.views()
    assert sessions.snapshot("alice", None).head == "h1"
    assert (view.token_count, len(view.block_hashes)) == (39, 9)


def test_a_session_s_own_words_never_go_on_with_a_subagent_s_head() -> None:
    sessions = index()
    finish(sessions, Request("agent", list(range(40)), session_id="alice/a1b2"))
    finish(sessions, Request("main", [*range(36), 7, 7, 7, 7, 7]))
    (view,) = sessions.views()
    assert view.heads == ("a1b2", "h1")


def test_a_session_of_which_only_a_subagent_is_known_is_meant_by_that() -> None:
    sessions = index()
    finish(sessions, Request("agent", list(range(20)), session_id="alice/a1b2"))
    assert sessions.snapshot("alice", None).head == "a1b2"


def test_a_head_that_a_client_calls_like_one_of_ours_is_not_opened_twice() -> None:
    sessions = index()
    finish(sessions, Request("named", list(range(20)), session_id="alice/h1"))
    finish(sessions, Request("main", list(range(100, 120))))
    (view,) = sessions.views()
    assert view.heads == ("h1", "h2")


def test_a_thaw_s_salt_opens_what_was_thawed_for_it_and_not_all_of_its_session() -> None:
    sessions = index({salt_hash("cwm-x"): "alice"})
    salted = Request("r", list(range(10)), session_id=None, cache_salt="cwm-x")
    sessions.request_added(salted)
    assert sessions.session_id_of(salted) is None


def test_a_session_s_windows_are_open_to_its_subagents_and_to_no_other_session() -> None:
    sessions = index()
    assert sessions.session_id_of(Request("r", [1], session_id="alice/a1b2")) == "alice"
    assert sessions.session_id_of(Request("r", [1], session_id="bob")) == "bob"
    assert sessions.session_id_of(Request("r", [1], session_id="not one")) is None
    assert sessions.session_id_of(Request("r", [1], session_id=None, cache_salt="s")) is None


# --- anonymous sessions ----------------------------------------------------------------------------------------------


def nobody(request_id: str, token_ids: list[int], **more: Any) -> Request:
    return Request(request_id, token_ids, session_id=None, **more)


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


def test_of_conversations_that_are_dropped_nothing_is_kept() -> None:
    beginnings = Beginnings(BLOCK)
    for number in range(3):
        beginnings.add(f"r{number}", nobody("r", [*SYSTEM, number, 9, 9, 9, 9]))
        beginnings.remove(f"r{number}")
        beginnings.remove("never there")
    assert not beginnings._alike and not beginnings._block_of


def test_who_says_anything_is_never_taken_for_anonymous_nor_the_other_way_round() -> None:
    sessions = index()
    words = [*SYSTEM, *range(10)]
    told = [
        nobody("silent", words),
        Request("named", words, session_id="alice"),
        Request("illegal", words, session_id="no spaces"),
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
    finish(sessions, nobody("image", list(range(10)), mm_features=[object()]))
    finish(sessions, nobody("short", [1, 2, 3]))
    assert sessions.views() == ()


def test_anonymous_sessions_are_bounded_and_push_no_named_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "MAX_ANONYMOUS", 5)
    sessions = index()
    finish(sessions, Request("named", list(range(10))))
    for number in range(20):
        finish(sessions, nobody(f"r{number}", list(range(100 * number, 100 * number + 10))))
    assert len(sessions.views()) == 6 and sessions.views()[-1].session_id == "alice"
    finish(sessions, nobody("first-again", list(range(10))))
    assert len(sessions.views()) == 6


def test_anonymous_sessions_are_bounded_by_their_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "MAX_ANONYMOUS_TOKENS", 100)
    sessions = index()
    for number in range(20):
        finish(sessions, nobody(f"r{number}", list(range(100 * number, 100 * number + 31))))
        finish(sessions, nobody(f"on{number}", list(range(100 * number, 100 * number + 41))))
    assert [view.token_count for view in sessions.views()] == [40, 40]
    finish(sessions, nobody("long", list(range(9000, 9300))))
    assert [view.token_count for view in sessions.views()] == [299]


def test_the_tokens_of_an_expired_anonymous_session_count_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "MAX_ANONYMOUS_TOKENS", 100)
    clock = Clock()
    sessions = index(clock=clock)
    finish(sessions, nobody("old", list(range(91))))
    clock.now += EXPIRES_AFTER + 10
    sessions.expire(lambda block: False)
    finish(sessions, nobody("new", list(range(500, 591))))
    assert len(sessions.views()) == 2


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


# --- titles and expiry -----------------------------------------------------------------------------------------------


def test_each_head_is_titled_once_and_the_title_shown_is_that_of_the_head_meant() -> None:
    wanted: list[tuple[Any, Any]] = []
    sessions = index(request_title=lambda tokens, tell: wanted.append((tokens, tell)))
    finish(sessions, Request("r1", list(range(10))))
    finish(sessions, Request("agent", list(range(50, 70)), session_id="alice/a1b2"))
    for tokens, tell in wanted:
        tell(f"begins with {tokens[0]}")
    finish(sessions, Request("r2", list(range(20))))
    (view,) = sessions.views()
    assert view.title == "begins with 0"
    assert len(wanted) == 2


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> Micros:
        self.now += 1
        return Micros(self.now)


def test_a_session_expires_once_it_is_old_and_the_prefix_cache_has_lost_it() -> None:
    clock = Clock()
    sessions = index(clock=clock)
    finish(sessions, Request("r", list(range(10))))
    finish(sessions, Request("r", list(range(50, 60)), session_id="kept"))
    kept = sessions.snapshot("kept", None).block_hashes[0]
    sessions.expire(lambda block: False)
    assert not any(view.expired for view in sessions.views()), "too young"
    clock.now += EXPIRES_AFTER
    finish(sessions, Request("r", [*range(1000, 1010)], session_id="young"))
    sessions.expire(lambda block: block == kept)
    assert {view.session_id: view.expired for view in sessions.views()} == {
        "young": False,
        "kept": False,
        "alice": True,
    }


def test_an_expired_session_is_listed_and_not_frozen_until_it_speaks_again() -> None:
    clock = Clock()
    sessions = index(clock=clock)
    finish(sessions, nobody("r", list(range(10))))
    clock.now += EXPIRES_AFTER + 10
    sessions.expire(lambda block: False)
    (view,) = sessions.views()
    assert (view.token_count, view.expired, view.block_hashes) == (9, True, ())
    with pytest.raises(CWMError, match=r"CWM-2001.*expired"):
        sessions.snapshot(view.session_id, None)
    finish(sessions, nobody("again", list(range(20))))
    (again,) = sessions.views()
    assert (again.session_id, again.expired, again.token_count) == (view.session_id, False, 19)


def test_a_session_that_is_being_answered_never_expires() -> None:
    clock = Clock()
    sessions = index(clock=clock)
    sessions.request_added(Request("r", list(range(10))))
    clock.now += 2 * EXPIRES_AFTER
    sessions.expire(lambda block: False)
    assert not sessions.views()[0].expired
