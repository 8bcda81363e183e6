"""dispatch.py: clone, delete, status and statistics as clients call them."""

import asyncio
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import on_disk
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)  # four chunks and one block


async def test_a_clone_stores_nothing_and_is_whole_after_its_source_is_deleted(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    before = on_disk(engine)
    cloned = await engine.call(Op.CLONE, source_window="w", target_window="c", description="for Bob")
    assert (cloned["shared_blocks"], cloned["new_bytes"]) == (5, 0) and on_disk(engine) == before
    deleted = await engine.call(Op.DELETE, window_name="w")
    assert (deleted["blocks_deleted"], deleted["blocks_shared"], deleted["space_freed_bytes"]) == (0, 5, 0)
    await engine.call(Op.THAW, window_name="c", new_session_id="bob")
    assert await engine.resume(TEXT, session_id="bob") == 144


async def test_a_delete_frees_exactly_the_chunks_that_no_window_shares(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.serve([*TEXT[:128], *range(5000, 5016)], "bob")
    await engine.call(Op.FREEZE, session_id="alice", window_name="a")
    bob = await engine.call(Op.FREEZE, session_id="bob", window_name="b")
    before = on_disk(engine)
    deleted = await engine.call(Op.DELETE, window_name="b")
    assert deleted["space_freed_bytes"] == bob["new_bytes"] == before - on_disk(engine) > 0
    last = await engine.call(Op.DELETE, window_name="a")
    assert last["blocks_deleted"] == 5 and on_disk(engine) == 0
    assert engine.cpu.usage().chunks == 0


async def test_a_deleted_window_is_not_loaded(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    await engine.call(Op.DELETE, window_name="w")
    assert await engine.resume(TEXT, session_id="bob") == 0
    with pytest.raises(CWMError, match="CWM-2002"):
        await engine.call(Op.THAW, window_name="w")


async def test_a_renamed_window_loads_for_those_who_thawed_it(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    thawed = await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    renamed = await engine.call(Op.TAG, window_name="w", new_name="v", add=["a"])
    assert (renamed["window_name"], renamed["tags"]) == ("v", ["a"])
    assert await engine.resume(TEXT, session_id="bob") == 144
    assert await engine.resume(TEXT, salt=thawed["cache_salt"]) == 144
    with pytest.raises(CWMError, match="CWM-2002"):
        await engine.call(Op.THAW, window_name="w")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    with pytest.raises(CWMError, match="CWM-3003"):
        await engine.call(Op.TAG, window_name="w", new_name="v")


async def test_freezes_thaws_clones_and_deletes_at_once_leave_every_window_whole_or_gone(engine: Miniature) -> None:
    for name in ("alice", "bob"):
        await engine.serve([*TEXT[:64], *range(ord(name[0]) * 100, ord(name[0]) * 100 + 64)], name)
    await engine.call(Op.FREEZE, session_id="alice", window_name="base")
    calls = []
    for turn in range(6):
        calls += [
            engine.call(Op.FREEZE, session_id=("alice", "bob")[turn % 2], window_name=f"f{turn}"),
            engine.call(Op.CLONE, source_window="base", target_window=f"c{turn}"),
            engine.call(Op.THAW, window_name="base", new_session_id=f"s{turn}"),
            engine.call(Op.DELETE, window_name=f"f{turn - 1}"),
        ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {each.code for each in outcomes if isinstance(each, CWMError)} <= {Code.WINDOW_NOT_FOUND}
    assert not [each for each in outcomes if isinstance(each, BaseException) and not isinstance(each, CWMError)]
    for window in (await engine.call(Op.LIST, limit=100))["windows"]:
        thawed = await engine.call(Op.THAW, window_name=window["name"], new_session_id="reader")
        assert not thawed["partial"], window["name"]
    await engine.catalog.run(lambda catalog: catalog.check_integrity())


async def test_sessions_are_active_until_frozen_and_again_when_they_speak(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    (session,) = (await engine.call(Op.SESSIONS))["sessions"]
    assert (session["state"], session["token_count"], session["cached_tokens"]) == ("active", 144, 144)
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    assert (await engine.call(Op.SESSIONS, state_filter="frozen"))["total"] == 1
    await engine.serve(range(1000, 1200), "alice")
    assert (await engine.call(Op.SESSIONS, state_filter="active"))["sessions"][0]["windows"] == ["w"]


async def test_statistics_count_what_was_loaded_and_where_the_chunks_are(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    await engine.call(Op.CLONE, source_window="w", target_window="c")
    unused = (await engine.call(Op.STATS))["kv_store"]
    assert (unused["total_blocks"], unused["hit_rate"], unused["dedup_ratio"]) == (5, 0.0, 2.0)
    assert unused["tiers"]["cpu"]["bytes"] == unused["tiers"]["disk"]["bytes"] == on_disk(engine)
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    await engine.resume(TEXT, session_id="bob")
    used = (await engine.call(Op.STATS))["kv_store"]
    assert (used["hits"], used["misses"], used["hit_rate"]) == (5, 0, 1.0)


async def test_a_window_s_exact_tokens_are_returned(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    ids = (await engine.call(Op.TOKENS, window_name="w"))["token_ids"]
    assert memoryview(ids).cast("i").tolist() == list(TEXT)


async def test_health_reports_all_parts_or_one(engine: Miniature) -> None:
    whole = await engine.call(Op.HEALTH)
    assert whole["status"] == "healthy"
    assert [each["name"] for each in whole["components"]] == ["engine", "catalog", "cpu", "disk", "redis"]
    engine.settings.chunks_path.rename(engine.settings.home / "away")
    part = await engine.call(Op.HEALTH, component="disk")
    assert part["status"] == "degraded" and part["components"][0]["status"] == "unhealthy"


async def test_status_needs_exactly_one_name(engine: Miniature) -> None:
    both: dict[str, Any] = {"window_name": "w", "session_id": "s"}
    for args in ({}, both):
        with pytest.raises(CWMError, match="CWM-1003"):
            await engine.call(Op.STATUS, **args)


async def test_tags_and_description_change_and_nothing_else_does(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w", tags=["a", "b"])
    changed = await engine.call(Op.TAG, window_name="w", add=["c"], remove=["a"], description="new")
    assert (sorted(changed["tags"]), changed["description"]) == (["b", "c"], "new")
    with pytest.raises(CWMError, match="CWM-1003"):
        await engine.call(Op.TAG, window_name="w", add=["no tag"])


async def test_a_shutdown_ends_with_a_line_about_the_error_that_vllm_may_log(
    engine: Miniature, caplog: pytest.LogCaptureFixture
) -> None:
    await engine.serve(TEXT, "alice")
    with caplog.at_level("INFO", "cwm_connector.operations.dispatch"):
        await engine.operations.finish_before_shutdown()
    assert caplog.messages[-1].startswith("all acknowledged windows are stored; an EngineDeadError after this")
