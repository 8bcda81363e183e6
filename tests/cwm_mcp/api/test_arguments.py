"""Every wrong argument has its code of the contract and one sentence that says what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import calls
from cwm_connector.protocol.calls import ARGUMENTS, Op
from cwm_mcp.api import arguments as a

TWIN: dict[Op, type[calls.Args]] = {
    Op.FREEZE: calls.FreezeArgs,
    Op.THAW: a.ThawArguments,
    Op.CLONE: calls.CloneArgs,
    Op.DELETE: a.DeleteArguments,
    Op.TAG: calls.TagArgs,
    Op.LIST: calls.ListArgs,
    Op.STATUS: calls.StatusArgs,
    Op.SESSIONS: calls.SessionsArgs,
    Op.TOKENS: calls.TokensArgs,
}

WRONG = [
    (calls.FreezeArgs, {"session_id": " \n", "window_name": "w"}, 1001),
    (calls.FreezeArgs, {"session_id": "", "window_name": "w"}, 1001),
    (calls.FreezeArgs, {"session_id": "s" * 1025, "window_name": "w"}, 1001),
    (a.ThawArguments, {"window_name": "w", "new_session_id": ""}, 1001),
    (calls.ListArgs, {"session_id": "é" * 513}, 1001),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "../w"}, 1002),
    (calls.FreezeArgs, {"session_id": "s", "window_name": ".w"}, 1002),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w\0"}, 1002),
    (calls.CloneArgs, {"source_window": "w", "target_window": "w w"}, 1002),
    (calls.CloneArgs, {"source_window": "w" * 129, "target_window": "w"}, 1002),
    (calls.FreezeArgs, {"window_name": "w"}, 1003),
    (calls.FreezeArgs, {"session_id": None, "window_name": "w"}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": ["w"]}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "tags": "[one"}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "tags": "[" * 100_000}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "tags": ["one two"]}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "tags": "one two"}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "tags": {"one": 1}}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "tags": [["one"]]}, 1003),
    (calls.FreezeArgs, {"session_id": 0.5, "window_name": "w"}, 1003),
    (calls.FreezeArgs, {"session_id": True, "window_name": "w"}, 1003),
    (a.DeleteArguments, {"window_name": "w", "force": 2}, 1003),
    (a.DeleteArguments, {"window_name": "w", "force": "sure"}, 1003),
    (calls.ListArgs, {"limit": "5.5"}, 1003),
    (calls.ListArgs, {"limit": "1,5"}, 1003),
    (calls.ListArgs, {"limit": "9" * 5000}, 1003),
    (calls.ListArgs, {"offset": "1e999999999"}, 1003),
    (calls.PolicyChange, {"idle_timeout_minutes": "nan"}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "tags": [f"t{n}" for n in range(33)]}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "description": "d" * 2001}, 1003),
    (calls.FreezeArgs, {"session_id": "s", "window_name": "w", "colour": "red"}, 1003),
    (a.ThawArguments, {"window_name": "w", "prewarm": "maybe"}, 1003),
    (a.ThawArguments, {"window_name": "w", "continuation_prompt": ""}, 1003),
    (a.ThawArguments, {"window_name": "w", "continuation_prompt": "Go on", "max_tokens": 0}, 1003),
    (a.ThawArguments, {"window_name": "w", "continuation_prompt": "Go on", "max_tokens": 2049}, 1003),
    (a.ThawArguments, {"window_name": "w", "max_tokens": 10}, 1003),
    (calls.ListArgs, {"sort_by": "colour"}, 1003),
    (calls.ListArgs, {"sort_order": "up"}, 1003),
    (calls.ListArgs, {"limit": 0}, 1003),
    (calls.ListArgs, {"limit": 101}, 1003),
    (calls.ListArgs, {"limit": True}, 1003),
    (calls.ListArgs, {"offset": -1}, 1003),
    (calls.ListArgs, {"offset": 1 << 63}, 1003),
    (calls.StatusArgs, {}, 1003),
    (calls.StatusArgs, {"window_name": "w", "session_id": "s"}, 1003),
    (calls.SessionsArgs, {"state_filter": "asleep"}, 1003),
    (calls.HealthArgs, {"component": "gpu"}, 1003),
    (a.MetricsArguments, {"format": "xml"}, 1003),
]


@pytest.mark.parametrize(("arguments", "raw", "code"), WRONG)
def test_a_wrong_argument_gets_its_code_and_one_short_sentence(
    arguments: type[calls.Args], raw: dict, code: int
) -> None:
    with pytest.raises(CWMError) as refused:
        a.parse(arguments, raw)
    assert refused.value.code == code
    assert 20 < len(refused.value.message) < 300
    assert "\n" not in refused.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(raw=st.dictionaries(st.sampled_from([*calls.ListArgs.__struct_fields__, "x"]), JSON))
def test_whatever_is_sent_is_accepted_or_refused_with_a_code(raw: dict) -> None:
    try:
        a.parse(calls.ListArgs, raw)
    except CWMError as refused:
        assert refused.code in (1001, 1003)


def test_an_unknown_argument_is_told_which_ones_there_are() -> None:
    with pytest.raises(CWMError, match=r"no argument 'name'; the arguments are: window_name, force"):
        a.parse(a.DeleteArguments, {"window_name": "w", "name": "w"})


def test_null_counts_as_left_out() -> None:
    sent = {"session_id": "s", "window_name": "w", "description": None, "tags": None, "head": None}
    assert a.parse(calls.FreezeArgs, sent) == a.parse(calls.FreezeArgs, {"session_id": "s", "window_name": "w"})


def test_tags_sent_as_json_text_are_a_list() -> None:
    assert a.parse(calls.ListArgs, {"tags": '["one", "two"]'}).tags == ["one", "two"]


def test_text_that_is_also_json_stays_text() -> None:
    parsed = a.parse(calls.FreezeArgs, {"session_id": "null", "window_name": "1", "description": '{"a": 1}'})
    assert (parsed.session_id, parsed.window_name, parsed.description) == ("null", "1", '{"a": 1}')


def test_current_is_the_clients_own_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAUDE_CODE_SESSION_ID", "11-22")
    assert a.parse(calls.FreezeArgs, {"session_id": "current", "window_name": "w"}).session_id == "11-22"


def test_current_is_refused_where_the_client_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAUDE_CODE_SESSION_ID", raising=False)
    with pytest.raises(CWMError, match="session_list") as refused:
        a.parse(calls.FreezeArgs, {"session_id": "current", "window_name": "w"})
    assert refused.value.code == 1001


@pytest.mark.parametrize("op", TWIN)
def test_the_tools_arguments_are_the_protocols(op: Op) -> None:
    # The facade's own: the engine asks neither anybody nor vLLM's HTTP interface.
    own = {"force", "continuation_prompt", "max_tokens"}
    assert set(TWIN[op].__struct_fields__) - own == set(ARGUMENTS[op].__struct_fields__)
