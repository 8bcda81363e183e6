"""The tools through `mcp.Client`, in both protocol eras, without an engine: names, answers, errors."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult, TextContent

from cwm_connector.settings import Settings
from cwm_mcp.server.app import build_server

ERAS = ["auto", "legacy"]

# contract.md's table. Not there yet: auto_freeze_policy.
TABLE = {
    "window_freeze": {"session_id", "window_name", "description", "tags", "head", "prove"},
    "window_thaw": {"window_name", "new_session_id", "continuation_prompt", "max_tokens", "prewarm", "prove"},
    "window_clone": {"source_window", "target_window", "description", "tags"},
    "window_list": {
        *("tags", "model", "search", "session_id", "created_after", "created_before", "sort_by", "sort_order"),
        *("limit", "offset"),
    },
    "window_status": {"window_name", "session_id", "include_blocks", "limit", "offset"},
    "window_delete": {"window_name", "force"},
    "window_tag": {"window_name", "add", "remove", "description", "new_name"},
    "session_list": {"state_filter", "model", "limit", "offset"},
    "cache_stats": set(),
    "health_check": {"component"},
    "get_metrics_data": {"format", "prefix", "limit", "offset"},
    "auto_freeze_policy": {
        *("enabled", "idle_timeout_minutes", "token_threshold", "naming_pattern", "keep_last", "tags"),
    },
}
ENGINE_ONLY: dict[str, dict[str, Any]] = {
    "window_freeze": {"session_id": "s", "window_name": "w"},
    "window_thaw": {"window_name": "stem"},
    "window_clone": {"source_window": "stem", "target_window": "w"},
    "window_delete": {"window_name": "stem"},
    "window_tag": {"window_name": "stem", "add": ["x"]},
    "auto_freeze_policy": {},
}


@asynccontextmanager
async def connected(settings: Settings, era: str = "auto") -> AsyncIterator[Client]:
    async with Client(build_server(settings), mode=era) as client:
        yield client


def text_of(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


async def answer(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    assert isinstance(result.structured_content, dict)
    assert json.loads(text_of(result)) == result.structured_content
    return result.structured_content


async def error(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What stands in `_meta`; the text says the same, and nothing is structured content."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert result.structured_content is None
    assert result.meta is not None
    about = result.meta["cwm/error"]
    assert set(about) == {"code", "message", "retryable", "context"}
    assert text_of(result) == f"CWM-{about['code']}: {about['message']}"
    assert isinstance(about, dict)
    return about


# --- what a model reads ---


@pytest.mark.parametrize("era", ERAS)
async def test_the_tools_and_their_arguments_are_the_contracts(settings: Settings, era: str) -> None:
    async with connected(settings, era) as client:
        tools = (await client.list_tools()).tools
    assert {tool.name: set(tool.input_schema.get("properties", {})) for tool in tools} == TABLE


async def test_the_set_costs_a_model_at_most_1700_tokens(settings: Settings) -> None:
    async with connected(settings) as client:
        tools = (await client.list_tools()).tools
    seen = [{"name": tool.name, "description": tool.description, "input_schema": tool.input_schema} for tool in tools]
    # SmolLM2's tokenizer makes a token of 3.55 bytes of it; 3 leaves room for one that does worse.
    assert len(json.dumps(seen, separators=(",", ":")).encode()) / 3 < 1700


async def test_the_schemas_say_what_must_be_given_and_carry_no_titles(settings: Settings) -> None:
    async with connected(settings) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert tools["window_freeze"].input_schema["required"] == ["session_id", "window_name"]
    assert tools["window_list"].input_schema["properties"]["sort_by"] == {
        "default": "created_at",
        "enum": ["name", "created_at", "token_count", "size"],
        "type": "string",
    }
    for tool in tools.values():
        assert "null" not in json.dumps(tool.input_schema)
        assert tool.output_schema is not None
        for schema in (tool.input_schema, tool.output_schema):
            assert schema["type"] == "object"
            assert '"title":"' not in json.dumps(schema, separators=(",", ":"))


async def test_the_tools_are_always_loaded_and_say_what_they_do_to_the_store(settings: Settings) -> None:
    async with connected(settings) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert all((tool.meta or {}).get("anthropic/alwaysLoad") is True for tool in tools.values())
    hints = {name: tool.annotations for name, tool in tools.items() if tool.annotations}
    assert hints.keys() == tools.keys()
    assert {name for name, hint in hints.items() if hint.read_only_hint} == tools.keys() - ENGINE_ONLY.keys()
    assert {name for name, hint in hints.items() if hint.destructive_hint} == {"window_delete"}


# --- without an engine ---


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("tool", ENGINE_ONLY)
async def test_what_needs_the_engine_says_so(filled: Path, settings: Settings, tool: str, era: str) -> None:
    async with connected(settings, era) as client:
        about = await error(client, tool, **ENGINE_ONLY[tool])
    assert (about["code"], about["retryable"]) == (5001, True)


@pytest.mark.parametrize("era", ERAS)
async def test_windows_are_listed_from_the_catalog(filled: Path, settings: Settings, era: str) -> None:
    async with connected(settings, era) as client:
        everything = await answer(client, "window_list")
        page = await answer(client, "window_list", tags=["project-x"], sort_by="token_count", limit=1)
        recent = await answer(client, "window_list", created_after="2026-01-02T01:00:00+01:00", sort_order="asc")
    assert [window["name"] for window in everything["windows"]] == ["stem-for-alice", "branch", "stem"]
    assert (everything["total"], everything["has_more"]) == (3, False)
    assert [window["name"] for window in page["windows"]] == ["branch"]
    assert (page["total"], page["has_more"]) == (3, True)
    assert "stem" not in [window["name"] for window in recent["windows"]]
    (branch,) = page["windows"]
    assert (branch["token_count"], branch["parent_window"], branch["session_id"]) == (5 * 256 + 10, "stem", "talk")
    assert branch["created_at"] == "2026-01-02T00:00:00.000Z"


@pytest.mark.parametrize("era", ERAS)
async def test_a_windows_status_is_read_from_the_catalog(filled: Path, settings: Settings, era: str) -> None:
    async with connected(settings, era) as client:
        plain = await answer(client, "window_status", window_name="stem")
        whole = await answer(client, "window_status", window_name="stem", include_blocks=True)
    assert (plain["type"], plain["id"], plain["token_count"]) == ("window", "stem", 3 * 256 + 10)
    assert plain["kv_cache"]["block_count"] == 3
    assert plain["kv_cache"]["hit_rate"] is None
    assert plain["lineage"] == {"parent": None, "children": ["branch", "stem-for-alice"]}
    assert plain["timestamps"]["thawed_at"] is None
    assert "blocks" not in plain
    assert [block["tokens"] for block in whole["blocks"]] == [256, 256, 256]


async def test_what_the_catalog_does_not_have_is_not_found(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        assert (await error(client, "window_status", window_name="nothing"))["code"] == 2002


async def test_sessions_are_listed_from_the_catalog(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        listed = await answer(client, "session_list")
        active = await answer(client, "session_list", state_filter="active")
    (talk,) = listed["sessions"]
    assert (talk["session_id"], talk["state"], talk["cached_tokens"]) == ("talk", "frozen", None)
    assert set(talk["windows"]) == {"stem", "branch"}
    assert active == {"sessions": [], "total": 0, "has_more": False}


async def test_statistics_are_the_catalogs_and_what_only_the_engine_knows_is_null(
    filled: Path, settings: Settings
) -> None:
    async with connected(settings) as client:
        stats = await answer(client, "cache_stats")
    store = stats["kv_store"]
    # Five chunks, referred to by 3 + 5 + 3 places.
    assert (store["total_blocks"], store["total_bytes"]) == (5, 5 * 4096)
    assert (store["hit_rate"], store["hits"], store["misses"]) == (None, None, None)
    assert store["tiers"] == {
        "cpu": None,
        "disk": {"blocks": 5, "bytes": 5 * 4096, "limit_bytes": None},
        "redis": {"blocks": 0, "bytes": 0, "limit_bytes": None},
    }
    assert stats["vllm"] == {
        "connected": False,
        "prefix_cache_hit_rate": None,
        "external_hit_rate": None,
        "cached_tokens": None,
    }


async def test_health_names_what_is_away_and_what_is_well(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        health = await answer(client, "health_check")
        engine = await answer(client, "health_check", component="engine")
    status = {component["name"]: component["status"] for component in health["components"]}
    assert health["status"] == "unhealthy"
    assert status["vllm"] == status["engine"] == "unhealthy"
    assert status["catalog"] == status["redis"] == "healthy"
    assert status["disk"] == "degraded", "no engine has made the folder yet"
    assert health["uptime_seconds"] >= 0
    assert [component["name"] for component in engine["components"]] == ["engine"]
    assert engine["status"] == "unhealthy"


async def test_a_broken_catalog_is_unhealthy_and_reading_it_is_an_error_with_a_code(
    filled: Path, settings: Settings
) -> None:
    settings.catalog_path.write_bytes(b"not a database" * 1000)
    async with connected(settings) as client:
        health = await answer(client, "health_check", component="catalog")
        about = await error(client, "window_list")
    assert health["status"] == "unhealthy"
    assert about["code"] == 4004


async def test_metrics_are_the_catalogs_gauges_in_both_formats(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        samples = (await answer(client, "get_metrics_data", format="json"))["metrics"]
        text = await answer(client, "get_metrics_data", format="prometheus", prefix="cwm_win")
    assert {sample["name"]: sample["value"] for sample in samples} == {
        "cwm_engine_up": 0,
        "cwm_windows": 3,
        "cwm_chunks": 5,
        "cwm_chunk_bytes": 5 * 4096,
    }
    assert text["text"] == "# HELP cwm_windows Windows in the catalog.\n# TYPE cwm_windows gauge\ncwm_windows 3.0\n"


async def test_a_home_that_no_engine_has_used_yet_is_empty(settings: Settings) -> None:
    async with connected(settings) as client:
        assert await answer(client, "window_list") == {"windows": [], "total": 0, "has_more": False}
        assert (await answer(client, "cache_stats"))["kv_store"]["total_blocks"] == 0
        assert (await answer(client, "health_check", component="catalog"))["status"] == "degraded"


# --- wrong arguments ---


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("window_freeze", {"session_id": " ", "window_name": "w"}, 1001),
        ("window_freeze", {"session_id": "current", "window_name": "w"}, 1001),
        ("window_thaw", {"window_name": "../x"}, 1002),
        ("window_clone", {"source_window": "stem"}, 1003),
        ("window_delete", {"window_name": "stem", "force": "sure"}, 1003),
        ("window_tag", {"window_name": "stem", "add": ["a b"]}, 1003),
        ("window_list", {"limit": 0}, 1003),
        ("window_list", {"created_after": "yesterday"}, 1003),
        ("window_status", {}, 1003),
        ("session_list", {"state_filter": "asleep"}, 1003),
        ("cache_stats", {"verbose": True}, 1003),
        ("health_check", {"component": "gpu"}, 1003),
        ("get_metrics_data", {"format": "xml"}, 1003),
    ],
)
async def test_a_wrong_argument_is_an_error_with_its_code(
    filled: Path, settings: Settings, tool: str, arguments: dict[str, Any], code: int, era: str
) -> None:
    async with connected(settings, era) as client:
        about = await error(client, tool, **arguments)
    assert (about["code"], about["retryable"]) == (code, False)


async def test_a_fault_of_ours_is_an_internal_error_that_repeats_no_argument(
    home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("cwm_mcp.api.operations.Operations.freeze", broken)
    async with connected(settings) as client:
        about = await error(client, "window_freeze", session_id="s", window_name="w", description="my secret")
    assert about["code"] == 9001
    assert "RuntimeError: broken" in caplog.text
    assert "my secret" not in caplog.text
