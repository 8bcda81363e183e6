"""Schemas are short and still say what pydantic's own would."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from cwm_connector.protocol import results
from cwm_mcp.api import arguments
from cwm_mcp.server.schema import input_schema, output_schema
from cwm_mcp.server.tools import TOOLS
from tests.cwm_mcp.canned import STATUS, STORE

VLLM = {"connected": False, "prefix_cache_hit_rate": None, "external_hit_rate": None, "cached_tokens": None}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_schema_is_one_and_refers_to_nothing(tool: Any) -> None:
    for schema in (tool.parameters, tool.output_schema):
        Draft202012Validator.check_schema(schema)
        assert "$ref" not in str(schema)


@pytest.mark.parametrize(
    ("result", "value", "fits"),
    [
        (results.CacheStats, {"kv_store": STORE, "vllm": VLLM}, True),
        (results.CacheStats, {"kv_store": {**STORE, "hits": None}, "vllm": VLLM}, True),
        (results.CacheStats, {"kv_store": {**STORE, "hits": "many"}, "vllm": VLLM}, False),
        (results.CacheStats, {"kv_store": {**STORE, "tiers": {"cpu": 5}}, "vllm": VLLM}, False),
        (results.CacheStats, {"kv_store": STORE}, False),
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
    schema = input_schema(arguments.CloneArguments)
    assert schema["required"] == ["source_window", "target_window"]
    assert schema["properties"]["tags"] == {"items": {"type": "string"}, "type": "array"}
