"""The user guide's other snippets as they stand there, section by section, through a real MCP client on stdio.

The calls are the guide's own, letter for letter; tests/GUIDE.md says which test belongs to which section.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.support.engine import Engine
from tests.support.mcp_client import ToolError, Tools, mcp_client
from tests.support.talk import talked


@asynccontextmanager
async def guide(engine: Engine, *windows: str) -> AsyncIterator[Tools]:
    """A client in whose store the guide's names are free, before and afterwards: other tests use the same ones."""
    async with mcp_client(engine) as cwm:
        await _delete(cwm, windows)
        yield cwm
        await _delete(cwm, windows)


async def _delete(cwm: Tools, windows: tuple[str, ...]) -> None:
    for name in windows:
        with suppress(ToolError):
            await cwm.call("window_delete", window_name=name, force=True)


async def frozen(engine: Engine, cwm: Tools, window: str, seed: int) -> int:
    """A window of a conversation of its own; returns its tokens."""
    talk = await talked(engine.api, f"of-{window}", seed, tokens=300, answer=4)
    await cwm.call("window_freeze", session_id=f"of-{window}", window_name=window)
    return talk.computed_tokens


# --- Quick Start ---


async def test_first_session(engine: Engine) -> None:
    talk = await talked(engine.api, "my-first-session", 320, tokens=504)
    async with guide(engine, "project-kickoff") as cwm:
        await cwm.call(
            "window_freeze",
            session_id="my-first-session",
            window_name="project-kickoff",
            description="Initial planning for the widget feature",
            tags=["planning", "widget"],
        )
        result = await cwm.call("window_thaw", window_name="project-kickoff")
        heard = await talk.branch(None, result["cache_salt"]).say("\nAnd then?", max_tokens=1)
    assert heard.restored >= talk.full_blocks(await engine.api.block_tokens())


# --- Advanced Usage ---


async def test_auto_freeze_policies(engine: Engine) -> None:
    auto_freeze_policy = {
        "enabled": True,
        "idle_timeout_minutes": 30,  # Freeze after 30 min idle
        "token_threshold": 100000,  # Freeze when context exceeds 100k tokens
        "naming_pattern": "auto-{session_id}-{timestamp}",
    }
    async with guide(engine) as cwm:
        before = await cwm.call("auto_freeze_policy")
        try:
            told = await cwm.call("auto_freeze_policy", **auto_freeze_policy)
            assert {name: told[name] for name in auto_freeze_policy} == auto_freeze_policy
            await talked(engine.api, "watched", 340, tokens=376)
            (session,) = [
                each for each in (await cwm.call("session_list"))["sessions"] if each["session_id"] == "watched"
            ]
            assert session["auto_freeze_at"] > session["last_active_at"]
            next_action = (await cwm.call("auto_freeze_policy"))["next_action"]
            assert next_action["reason"] == "idle" and next_action["due_at"] <= session["auto_freeze_at"]
        finally:
            before.pop("next_action")
            await cwm.call("auto_freeze_policy", **before)


async def test_context_window_monitoring(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    async with guide(engine) as cwm:
        health_check, get_metrics_data = cwm.tool("health_check"), cwm.tool("get_metrics_data")

        # Check system health
        health = await health_check()
        print(f"Status: {health['status']}")
        print(f"Uptime: {health['uptime_seconds']}s")

        # Get detailed metrics
        metrics = await get_metrics_data(format="json")
        for metric in metrics["metrics"]:
            print(f"{metric['name']}: {metric['value']}")

    said = capsys.readouterr().out
    assert "Status: healthy" in said
    assert "cwm_engine_up: 1" in said
    assert health["uptime_seconds"] > 0


async def test_session_state_management(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    await talked(engine.api, "still-talking", 321, tokens=300, answer=4)
    async with guide(engine, "my-project") as cwm:
        session_list, window_status = cwm.tool("session_list"), cwm.tool("window_status")
        tokens = await frozen(engine, cwm, "my-project", 322)

        # List all active sessions
        active = await session_list(state_filter="active")

        # List all frozen sessions
        frozen_ones = await session_list(state_filter="frozen")

        # Get detailed status
        status = await window_status(window_name="my-project")
        print(f"Token count: {status['token_count']}")
        print(f"Storage tier: {status['kv_cache']['storage_tier']}")

    assert "still-talking" in {session["session_id"] for session in active["sessions"]}
    assert "of-my-project" in {session["session_id"] for session in frozen_ones["sessions"]}
    assert f"Token count: {tokens}" in capsys.readouterr().out
    assert status["kv_cache"]["storage_tier"] in ("cpu", "disk")


async def test_custom_cache_salt_for_vllm(engine: Engine) -> None:
    talk = await talked(engine.api, "salted", 323, tokens=504)
    async with guide(engine, "my-context") as cwm:
        window_thaw = cwm.tool("window_thaw")
        await cwm.call("window_freeze", session_id="salted", window_name="my-context")

        # Thaw returns a cache_salt for vLLM
        result = await window_thaw(window_name="my-context")
        cache_salt = result["cache_salt"]

        # Use this salt when making vLLM requests to get cache hits
        heard = await engine.api.measure(talk.ids, 1, cache_salt=cache_salt)
    assert heard.restored >= talk.full_blocks(await engine.api.block_tokens())


# --- Troubleshooting ---


async def test_session_not_found(engine: Engine) -> None:
    await talked(engine.api, "known-session", 324, tokens=300, answer=4)
    async with guide(engine) as cwm:
        session_list, window_status = cwm.tool("session_list"), cwm.tool("window_status")

        # List available sessions
        sessions = await session_list()
        assert "known-session" in {session["session_id"] for session in sessions["sessions"]}

        # Check if your session exists
        with pytest.raises(ToolError) as unknown:
            await window_status(session_id="your-session-id")
        status = await window_status(session_id="known-session")
    assert unknown.value.code == 2001
    assert "session_list" in unknown.value.message
    assert status["type"] == "session"


async def test_window_already_exists(engine: Engine) -> None:
    await talked(engine.api, "session", 325, tokens=300, answer=4)
    async with guide(engine, "project", "project-v2") as cwm:
        window_freeze, window_delete = cwm.tool("window_freeze"), cwm.tool("window_delete")
        await window_freeze(session_id="session", window_name="project")
        with pytest.raises(ToolError) as taken:
            await window_freeze(session_id="session", window_name="project")

        # Use a unique name
        await window_freeze(
            session_id="session",
            window_name="project-v2",  # Add version or timestamp
        )

        # Or delete the existing window first
        await window_delete(window_name="project")
        await window_freeze(session_id="session", window_name="project")
    assert taken.value.code == 3003


async def test_slow_restore_times_are_told_and_a_thaw_warms_up(engine: Engine) -> None:
    async with guide(engine, "frequently-used") as cwm:
        await frozen(engine, cwm, "frequently-used", 326)
        thawed = await cwm.call("window_thaw", window_name="frequently-used")
        status = await cwm.call("window_status", window_name="frequently-used")
    assert sum(thawed["restored_by_tier"].values()) == thawed["restorable_tokens"] > 0
    assert status["kv_cache"]["storage_tier"] == "cpu", "read into memory by the thaw"


async def test_vllm_connection(engine: Engine) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        assert (await http.get(f"{engine.url}/health")).status_code == httpx.codes.OK
    async with guide(engine) as cwm:
        health_check = cwm.tool("health_check")
        health = await health_check(component="vllm")
    assert [(each["name"], each["status"]) for each in health["components"]] == [("vllm", "healthy")]


async def test_health_check_diagnostics(engine: Engine) -> None:
    async with guide(engine) as cwm:
        health_check = cwm.tool("health_check")

        # Full health check
        health = await health_check()

        if health["status"] == "unhealthy":
            for component in health["components"]:
                if component["status"] != "healthy":
                    print(f"Issue with {component['name']}: {component['message']}")
    assert health["status"] == "healthy", health


async def test_checking_storage_usage(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    async with guide(engine, "stored") as cwm:
        cache_stats = cwm.tool("cache_stats")
        await frozen(engine, cwm, "stored", 327)

        # Get cache statistics
        stats = await cache_stats()

        print(f"KV Store blocks: {stats['kv_store']['total_blocks']}")
        print(f"KV Store size: {stats['kv_store']['total_bytes'] / 1024 / 1024:.2f} MB")
        print(f"Hit rate: {stats['kv_store']['hit_rate']:.2%}")
    assert stats["kv_store"]["total_blocks"] > 0
    assert "%" in capsys.readouterr().out


# --- Best Practices ---


async def test_descriptive_names_and_tags(engine: Engine) -> None:
    await talked(engine.api, "sess-123", 328, tokens=300, answer=4)
    async with guide(engine, "auth-module-debug-jan23", "save1") as cwm:
        window_freeze, window_list = cwm.tool("window_freeze"), cwm.tool("window_list")

        # Good
        await window_freeze(
            session_id="sess-123",
            window_name="auth-module-debug-jan23",
            description="Debugging token refresh - root cause identified in line 145",
            tags=["debug", "auth", "january"],
        )

        # Bad
        await window_freeze(session_id="sess-123", window_name="save1")

        found = await window_list(search="root cause")
    assert [window["name"] for window in found["windows"]] == ["auth-module-debug-jan23"]


async def test_clean_up_old_windows(engine: Engine) -> None:
    async with guide(engine, "keep-me", "drop-me") as cwm:
        window_list, window_delete = cwm.tool("window_list"), cwm.tool("window_delete")
        await frozen(engine, cwm, "keep-me", 329)
        await frozen(engine, cwm, "drop-me", 330)
        await cwm.call("window_tag", window_name="drop-me", add=["temporary"])

        # List old windows
        old = await window_list(created_before="2026-01-01T00:00:00Z")
        assert old == {"windows": [], "total": 0, "has_more": False}, "everything here is younger"

        tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        old = await window_list(created_before=tomorrow, limit=100)

        # Delete unneeded ones
        for window in old["windows"]:
            if "temporary" in window["tags"]:
                await window_delete(window_name=window["name"])

        left = {window["name"] for window in (await window_list(limit=100))["windows"]}
    assert "keep-me" in left
    assert "drop-me" not in left


async def test_a_tagging_convention(engine: Engine) -> None:
    tags = ["project-widget", "debug", "experiment", "production", "wip"]
    async with guide(engine, "conventional") as cwm:
        await frozen(engine, cwm, "conventional", 331)
        await cwm.call("window_tag", window_name="conventional", add=tags)
        listed = [await cwm.call("window_list", tags=[tag]) for tag in tags]
    assert all("conventional" in {window["name"] for window in page["windows"]} for page in listed)


async def test_monitor_context_size(engine: Engine) -> None:
    async with guide(engine, "my-context") as cwm:
        window_status = cwm.tool("window_status")
        tokens = await frozen(engine, cwm, "my-context", 332)

        status = await window_status(window_name="my-context")
        if status["token_count"] > 50000:
            print("Consider trimming this context")
    assert status["token_count"] == tokens


async def test_clone_before_experimenting(engine: Engine) -> None:
    async with guide(engine, "stable-context", "experiment-context") as cwm:
        window_clone = cwm.tool("window_clone")
        await frozen(engine, cwm, "stable-context", 333)

        await window_clone(source_window="stable-context", target_window="experiment-context")
        # Now experiment safely
        thawed = await cwm.call("window_thaw", window_name="experiment-context", new_session_id="experimenter")
        stable = await cwm.call("window_status", window_name="stable-context")
    assert not thawed["partial"]
    assert stable["state"] == "frozen"


async def test_check_health_before_critical_operations(engine: Engine) -> None:
    await talked(engine.api, "critical", 334, tokens=300, answer=4)
    async with guide(engine, "checked-first") as cwm:
        health_check, window_freeze = cwm.tool("health_check"), cwm.tool("window_freeze")

        health = await health_check()
        if health["status"] == "healthy":
            # Safe to proceed
            await window_freeze(session_id="critical", window_name="checked-first")
        else:
            pytest.fail("System degraded - consider waiting")
        assert (await cwm.call("window_status", window_name="checked-first"))["token_count"] > 0
