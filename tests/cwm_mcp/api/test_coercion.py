"""Arguments as clients send them: what can mean one thing is taken so, and the rest is refused with the right form."""

import json
from typing import Any

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import calls
from cwm_mcp.api import arguments as a
from cwm_mcp.server.schema import input_schema
from cwm_mcp.server.tools import TOOLS

W = {"window_name": "w"}
FREEZE = {"session_id": "s", **W}

TAKEN: list[tuple[type[calls.Args], dict[str, Any], str, object]] = [
    (a.DeleteArguments, {**W, "force": "true"}, "force", True),
    (a.DeleteArguments, {**W, "force": " True "}, "force", True),
    (a.DeleteArguments, {**W, "force": "no"}, "force", False),
    (a.DeleteArguments, {**W, "force": 1}, "force", True),
    (a.DeleteArguments, {**W, "force": "null"}, "force", False),
    (a.ThawArguments, {**W, "prewarm": "false"}, "prewarm", False),
    (a.ThawArguments, {**W, "prewarm": "OFF"}, "prewarm", False),
    (a.ThawArguments, {**W, "prewarm": 0}, "prewarm", False),
    (calls.ListArgs, {"limit": "5"}, "limit", 5),
    (calls.ListArgs, {"limit": " 5 "}, "limit", 5),
    (calls.ListArgs, {"limit": "5.0"}, "limit", 5),
    (calls.ListArgs, {"limit": 5.0}, "limit", 5),
    (calls.ListArgs, {"limit": ""}, "limit", 20),
    (calls.ListArgs, {"limit": "None"}, "limit", 20),
    (calls.ListArgs, {"offset": "9223372036854775807"}, "offset", (1 << 63) - 1),
    (calls.ListArgs, {"sort_order": "DESC"}, "sort_order", "desc"),
    (calls.ListArgs, {"sort_by": "Created-At"}, "sort_by", "created_at"),
    (calls.ListArgs, {"sort_by": ""}, "sort_by", "created_at"),
    (calls.ListArgs, {"model": ""}, "model", None),
    (calls.ListArgs, {"created_after": ""}, "created_after", None),
    (calls.ListArgs, {"tags": "one"}, "tags", ["one"]),
    (calls.ListArgs, {"tags": "one, two"}, "tags", ["one", "two"]),
    (calls.ListArgs, {"tags": '["one", "two"]'}, "tags", ["one", "two"]),
    (calls.ListArgs, {"tags": "['one', 'two']"}, "tags", ["one", "two"]),
    (calls.ListArgs, {"tags": "[one, two]"}, "tags", ["one", "two"]),
    (calls.ListArgs, {"tags": '"one"'}, "tags", ["one"]),
    (calls.ListArgs, {"tags": "[]"}, "tags", []),
    (calls.ListArgs, {"tags": ""}, "tags", []),
    (calls.ListArgs, {"tags": [2026, "x"]}, "tags", ["2026", "x"]),
    (calls.ListArgs, {"tags": 2026}, "tags", ["2026"]),
    (calls.FreezeArgs, {"session_id": 7, **W}, "session_id", "7"),
    (calls.FreezeArgs, {"sessionId": "s", "window-name": "w"}, "session_id", "s"),
    (calls.FreezeArgs, {"arguments": FREEZE}, "window_name", "w"),
    (calls.FreezeArgs, {"input": json.dumps(FREEZE)}, "window_name", "w"),
    (calls.FreezeArgs, {**FREEZE, "note": None, "extra": {}, "other": ""}, "window_name", "w"),
    (calls.HealthArgs, {"component": "Redis"}, "component", "redis"),
    (calls.HealthArgs, {"component": ""}, "component", None),
    (calls.SessionsArgs, {"state_filter": "Frozen", "limit": "50"}, "state_filter", "frozen"),
    (a.MetricsArguments, {"format": "JSON"}, "format", "json"),
    (calls.PolicyChange, {"idle_timeout_minutes": "0.5"}, "idle_timeout_minutes", 0.5),
    (calls.PolicyChange, {"enabled": "True", "token_threshold": "100"}, "token_threshold", 100),
]


@pytest.mark.parametrize(("arguments", "raw", "name", "meant"), TAKEN, ids=lambda value: str(value)[:40])
def test_a_value_that_can_mean_one_thing_is_taken_so(
    arguments: type[calls.Args], raw: dict[str, Any], name: str, meant: object
) -> None:
    value = getattr(a.parse(arguments, raw), name)
    assert (value, type(value)) == (meant, type(meant))


def test_a_call_without_arguments_ignores_the_filler_that_some_clients_send() -> None:
    assert a.parse(calls.NoArgs, {"random_string": "x"}) == calls.NoArgs()


@pytest.mark.parametrize(
    ("raw", "right_form"),
    [
        ({"limit": "many"}, '"limit": 10'),
        ({"tags": "[one"}, '"tags": ["one", "two"]'),
        ({"sort_order": "up"}, '"sort_order": "asc"'),
        ({"model": {}}, '"model": "text"'),
    ],
)
def test_a_refusal_shows_the_right_form(raw: dict[str, Any], right_form: str) -> None:
    with pytest.raises(CWMError, match="call again") as refused:
        a.parse(calls.ListArgs, raw)
    assert right_form in refused.value.message


def test_two_spellings_of_one_argument_are_not_guessed_between() -> None:
    with pytest.raises(CWMError, match="no argument 'windowName'"):
        a.parse(calls.TokensArgs, {"window_name": "w", "windowName": "v"})


def test_every_typed_argument_is_taken_as_text() -> None:
    """A new argument of any tool is covered without a row here."""
    samples = {"boolean": ("true", True), "integer": ("7", 7), "number": ("7.5", 7.5), "array": ('["x"]', ["x"])}
    tried = 0
    own: list[type[calls.Args]] = [a.ThawArguments, a.StatusArguments, a.DeleteArguments, a.MetricsArguments]
    for kind in [*own, *calls.ARGUMENTS.values()]:
        schema = input_schema(kind)
        needed = dict.fromkeys(schema.get("required", []), "x")
        for name, shape in schema.get("properties", {}).items():
            if shape["type"] not in samples:
                continue
            text, meant = samples[shape["type"]]
            others = {"continuation_prompt": "Go on"} if name == "max_tokens" else needed
            others = {"window_name": "w"} | others if issubclass(kind, (a.ThawArguments, calls.StatusArgs)) else others
            assert getattr(a.parse(kind, {**others, name: text}), name) == meant
            tried += 1
    assert tried > 20


def test_the_schema_stays_strict() -> None:
    shown = {tool.name: tool.parameters["properties"] for tool in TOOLS}
    assert shown["window_delete"]["force"]["type"] == "boolean"
    assert shown["window_list"]["limit"]["type"] == "integer"
    assert shown["window_list"]["tags"]["type"] == "array"
