"""sessions.py: who is speaking, and which chain a freeze means."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from cwm_connector.protocol import CWMError
from cwm_connector.sessions import MAX_HEADS, SessionIndex, salt_hash, session_of_salt

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


def index(thawed: dict[bytes, str] | None = None) -> SessionIndex:
    return SessionIndex("model", BLOCK, (thawed or {}).get)


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


def test_a_request_that_says_nothing_or_something_illegal_has_no_session() -> None:
    sessions = index()
    finish(sessions, Request("r", list(range(10)), session_id=None))
    finish(sessions, Request("r", list(range(10)), session_id="no spaces"))
    assert sessions.views() == ()


def test_adapters_and_images_mark_the_head_as_not_text_only() -> None:
    sessions = index()
    finish(sessions, Request("r", list(range(10)), lora_request=object()))
    head = sessions.snapshot("alice", None)
    assert not head.text_only


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
