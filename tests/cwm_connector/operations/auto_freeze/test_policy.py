"""policy.py: what a policy may be, how it changes and is kept, and the names it makes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_window_name
from cwm_connector.core.types import Micros
from cwm_connector.operations.auto_freeze.policy import Policy, as_note, changed, from_note, initial
from cwm_connector.protocol.calls import PolicyArgs
from cwm_connector.settings import load_settings

AT = Micros(1_769_160_600_000_000)  # 2026-01-23 09:30 UTC
PLAIN = Policy()


def test_the_default_settings_are_the_guide_s_policy(tmp_path: Path) -> None:
    assert initial(load_settings({"home": str(tmp_path)})) == Policy(
        False, 30, 100_000, "auto-{session_id}-{timestamp}", 3, ()
    )


def test_a_change_sets_only_the_fields_that_it_gives() -> None:
    assert changed(PLAIN, PolicyArgs(enabled=True, tags=["a", "a"])) == Policy(enabled=True, tags=("a",))
    assert changed(Policy(keep_last=9), PolicyArgs(idle_timeout_minutes=0.5)) == Policy(
        keep_last=9, idle_timeout_minutes=0.5
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"idle_timeout_minutes": -1},
        {"idle_timeout_minutes": float("nan")},
        {"idle_timeout_minutes": float("inf")},
        {"token_threshold": -1},
        {"token_threshold": 2**40},
        {"keep_last": -1},
        {"tags": ["no tag"]},
        {"naming_pattern": ""},
        {"naming_pattern": "a/b"},
        {"naming_pattern": ".hidden-{session_id}"},
        {"naming_pattern": "{user}"},
        {"naming_pattern": "{}"},
        {"naming_pattern": "{session_id"},
        {"naming_pattern": "{session_id.__class__}"},
        {"naming_pattern": "{session_id[0]}"},
        {"naming_pattern": "{session_id!r}"},
        {"naming_pattern": "{generation:>100}"},
        {"naming_pattern": "{timestamp}" * 2},
        {"naming_pattern": "a" * 81},
    ],
)
def test_an_impossible_value_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(CWMError) as caught:
        changed(PLAIN, PolicyArgs(**wrong))
    assert caught.value.code is Code.ARGUMENT
    assert next(iter(wrong)) in caught.value.message or "tag" in caught.value.message


def test_changes_are_kept_field_by_field_and_other_settings_still_count() -> None:
    note = as_note(changed(PLAIN, PolicyArgs(enabled=True, tags=["x"])), PLAIN)
    assert from_note(note, Policy(keep_last=7)) == Policy(enabled=True, tags=("x",), keep_last=7)
    assert as_note(PLAIN, PLAIN) is None
    assert from_note(None, PLAIN) == PLAIN


def test_a_field_of_a_newer_version_is_ignored() -> None:
    assert from_note('{"enabled": true, "from_2030": 1}', PLAIN) == Policy(enabled=True)


@pytest.mark.parametrize("note", ["", "[]", "{", '{"enabled": "yes"}', '{"keep_last": -3}', "7"])
def test_a_note_that_can_t_be_read_is_refused(note: str) -> None:
    with pytest.raises(CWMError):
        from_note(note, PLAIN)


def test_a_name_contains_session_time_and_generation() -> None:
    policy = Policy(naming_pattern="auto-{session_id}-{timestamp}.g{generation}")
    assert policy.window_name("alice", AT, 3) == "auto-alice-20260123-093000.g3"


@given(st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True), st.integers(1, 999_999_999))
def test_every_session_gets_a_legal_name_with_room_for_a_number(session_id: str, generation: int) -> None:
    for pattern in (PLAIN.naming_pattern, "{session_id}", "x" * 40 + "{timestamp}{session_id}{generation}"):
        name = Policy(naming_pattern=pattern).window_name(session_id, AT, generation)
        check_window_name(f"{name}-999")


def test_long_sessions_that_begin_alike_get_different_names() -> None:
    one, other = (PLAIN.window_name("s" * 127 + end, AT, 1) for end in "ab")
    assert one != other


def test_nothing_is_due_while_it_is_switched_off() -> None:
    assert Policy(enabled=False).idle_due_at(AT) is None
    assert Policy(enabled=True, idle_timeout_minutes=0).idle_due_at(AT) is None
    assert Policy(enabled=True).idle_due_at(AT) == AT + 30 * 60 * 1_000_000
    assert Policy(enabled=True, token_threshold=0).crossings(10**9) == 0


def test_a_threshold_is_crossed_again_each_time_a_session_has_grown_by_it() -> None:
    policy = Policy(enabled=True, token_threshold=100)
    assert [policy.crossings(tokens) for tokens in (99, 100, 199, 200)] == [0, 1, 1, 2]
