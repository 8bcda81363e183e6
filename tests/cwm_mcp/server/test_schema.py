"""Schemas are short, still say all that is needed, and follow the structs that they are made from."""

from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from cwm_connector.protocol import calls, results, stats
from cwm_mcp.api import arguments
from cwm_mcp.server.schema import input_schema, output_schema
from cwm_mcp.server.tools import TOOLS
from tests.cwm_mcp.canned import STATUS, STORE

STRUCTS: dict[str, tuple[type[calls.Args], type[results.Answer]]] = {
    "window_freeze": (calls.FreezeArgs, results.Frozen),
    "window_thaw": (arguments.ThawArguments, results.Thawed),
    "window_clone": (calls.CloneArgs, results.Cloned),
    "window_list": (calls.ListArgs, results.WindowList),
    "window_status": (arguments.StatusArguments, results.Status),
    "window_delete": (arguments.DeleteArguments, results.Deleted),
    "window_tag": (calls.TagArgs, results.Tagged),
    "session_list": (calls.SessionsArgs, results.SessionList),
    "cache_stats": (calls.NoArgs, stats.CacheStats),
    "health_check": (calls.HealthArgs, stats.Health),
    "get_metrics_data": (arguments.MetricsArguments, stats.Metrics),
    "auto_freeze_policy": (calls.PolicyChange, results.AutoFreezePolicy),
}
VLLM = {"connected": False, "prefix_cache_hit_rate": None, "external_hit_rate": None, "cached_tokens": None}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_schema_is_one_and_refers_to_nothing(tool: Any) -> None:
    for schema in (tool.parameters, tool.output_schema):
        Draft202012Validator.check_schema(schema)
        assert "$ref" not in str(schema)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tools_schemas_have_the_fields_of_its_structs(tool: Any) -> None:
    given, answered = STRUCTS[tool.name]
    assert tuple(tool.parameters["properties"]) == given.__struct_fields__
    assert tuple(tool.output_schema["properties"]) == answered.__struct_fields__


def test_a_new_field_is_written_down_once() -> None:
    wider = msgspec.defstruct("Wider", [("colour", str)], bases=(results.Cloned,), frozen=True)
    schema = output_schema(wider)
    assert schema["properties"]["colour"] == {"type": "string"}
    assert "colour" in schema["required"]
    asked: Any = msgspec.defstruct("Asked", [("colour", str, "red")], bases=(calls.CloneArgs,), frozen=True)
    assert input_schema(asked)["properties"]["colour"] == {"default": "red", "type": "string"}
    parsed: Any = arguments.parse(asked, {"source_window": "w", "target_window": "x", "colour": "blue"})
    assert parsed.colour == "blue"


@pytest.mark.parametrize(
    ("result", "value", "fits"),
    [
        (stats.CacheStats, {"kv_store": STORE, "vllm": VLLM}, True),
        (stats.CacheStats, {"kv_store": {**STORE, "hits": None}, "vllm": VLLM}, True),
        (stats.CacheStats, {"kv_store": {**STORE, "hits": "many"}, "vllm": VLLM}, False),
        (stats.CacheStats, {"kv_store": {**STORE, "tiers": {"cpu": 5}}, "vllm": VLLM}, False),
        (stats.CacheStats, {"kv_store": STORE}, False),
        (results.Status, STATUS, True),
        (results.Status, {**STATUS, "type": "tree"}, False),
        (results.Status, {**STATUS, "blocks": [{"hash": "00"}]}, False),
    ],
)
def test_a_result_fits_its_schema_and_another_does_not(result: Any, value: dict, fits: bool) -> None:
    assert Draft202012Validator(output_schema(result)).is_valid(value) is fits


def test_a_property_named_title_is_no_title() -> None:
    item = output_schema(results.SessionList)["properties"]["sessions"]["items"]
    assert "title" in item["properties"]
    assert "title" not in item


def test_an_optional_argument_is_one_that_may_be_left_out() -> None:
    schema = input_schema(calls.CloneArgs)
    assert schema["required"] == ["source_window", "target_window"]
    assert schema["properties"]["tags"] == {"items": {"type": "string"}, "type": "array"}
