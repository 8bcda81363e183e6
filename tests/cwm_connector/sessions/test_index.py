"""sessions/index.py: which session a request belongs to, and which chain a freeze takes."""

from typing import Any

import pytest
from vllm.lora.request import LoRARequest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.names import legal_session_id
from cwm_connector.core.types import salt_hash
from cwm_connector.sessions.heads import MAX_HEADS
from cwm_connector.sessions.index import EXPIRES_AFTER
from cwm_connector.sessions.unnamed import session_of_salt
from cwm_connector.sessions.views import HeadReason
from tests.cwm_connector.sessions.samples import Clock, Request, finish, index, nobody


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


def test_an_unrelated_chain_is_a_head_of_its_own_and_not_what_a_freeze_takes() -> None:
    sessions = index()
    finish(sessions, Request("r1", list(range(20))))
    finish(sessions, Request("title", list(range(100, 110))))
    conversation, title = sessions.snapshot("alice", None), sessions.snapshot("alice", "h2")
    assert (conversation.head, len(conversation.token_ids)) == ("h1", 19)
    assert (title.reason, len(title.token_ids)) == (HeadReason.ASKED, 9)
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
    for number, illegal in enumerate((" ", "x" * 1025)):
        finish(sessions, Request(f"r{number}", list(range(10)), session_id=illegal))
    assert sessions.views() == ()


def test_an_illegal_id_makes_a_session_of_the_legal_id_that_it_becomes() -> None:
    sessions = index()
    identifiers = ("alice@example.com", "no spaces", "/head", "a/b/c", "x" * 129, "ü")
    for number, identifier in enumerate(identifiers):
        finish(sessions, Request(f"r{number}", list(range(10)), session_id=identifier))
    assert {view.session_id for view in sessions.views()} == {legal_session_id(each) for each in identifiers}


def test_an_answer_of_an_adapter_and_one_without_are_two_heads_of_a_session() -> None:
    adapter = LoRARequest(lora_name="one", lora_int_id=1, lora_path="/nowhere")
    sessions = index()
    finish(sessions, Request("r", list(range(10)), lora_request=adapter))
    finish(sessions, Request("plain", list(range(10))))
    heads = [sessions.snapshot("alice", name) for name in ("h1", "h2")]
    assert [head.carried.adapter and head.carried.adapter.lora_request for head in heads] == [adapter, None]


def test_heads_are_bounded() -> None:
    sessions = index()
    for number in range(MAX_HEADS + 5):
        finish(sessions, Request(f"r{number}", list(range(1000 * number, 1000 * number + 10))))
    (view,) = sessions.views()
    assert len(view.heads) == MAX_HEADS and view.heads[-1] == f"h{MAX_HEADS + 5}"


def test_a_session_without_a_full_block_can_t_be_frozen_yet() -> None:
    sessions = index()
    finish(sessions, Request("r", [1, 2, 3]))
    with pytest.raises(CWMError, match=r"CWM-3001.* has 2 tokens; a window needs 4"):
        sessions.snapshot("alice", None)


def test_a_session_without_a_full_block_is_listed_with_its_tokens() -> None:
    sessions = index()
    running = Request("r", [1, 2, 3])
    sessions.request_added(running)
    running.num_computed_tokens = 1
    assert [view.token_count for view in sessions.views()] == [1]
    running.num_computed_tokens = 3
    sessions.request_finished(running)
    assert [(view.token_count, view.heads) for view in sessions.views()] == [(3, ())]
    finish(sessions, Request("next", [1, 2, 3, 4, 5, 6, 7]))
    assert [view.token_count for view in sessions.views()] == [6]


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
    assert (view.head, view.token_count) == ("h1", 39)


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
    assert sessions.session_id_of(Request("r", [1], session_id="x" * 1025)) is None
    assert sessions.session_id_of(Request("r", [1], session_id=None, cache_salt="s")) is None


# --- titles and expiry -----------------------------------------------------------------------------------------------


def test_each_head_is_titled_once_and_the_title_shown_is_that_of_the_head_meant() -> None:
    wanted: list[tuple[Any, Any]] = []
    sessions = index(request_title=lambda tokens, tell: wanted.append((tokens, tell)))
    finish(sessions, Request("r1", list(range(10))))
    finish(sessions, Request("agent", list(range(50, 70)), session_id="alice/a1b2"))
    for tokens, tell in wanted:
        tell(f"begins with {tokens.packed()[0]}")
    finish(sessions, Request("r2", list(range(20))))
    (view,) = sessions.views()
    assert view.title == "begins with 0"
    assert len(wanted) == 2


def test_a_title_is_made_of_the_beginning_of_a_long_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwm_connector.sessions.heads.TITLED_TOKENS", 20)
    wanted: list[list[int]] = []
    sessions = index(request_title=lambda tokens, tell: wanted.append(list(tokens.packed())))
    for session, size in (("long", 90), ("just", 22), ("short", 10)):
        finish(sessions, Request(session, list(range(size)), session_id=session))
    assert wanted == [list(range(20)), list(range(21)), list(range(9))]


def test_a_session_expires_once_it_is_old_and_the_prefix_cache_has_lost_it() -> None:
    clock = Clock()
    sessions = index(clock=clock)
    finish(sessions, Request("r", list(range(10))))
    finish(sessions, Request("r", list(range(50, 60)), session_id="kept"))
    kept = sessions.snapshot("kept", None).block_hashes[-1]
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
    assert (view.token_count, view.expired) == (9, True)
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
