"""freeze.py, thaw.py, queries.py over real tiers, a real catalog and vLLM's block pool; only the model is missing."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import Passport
from cwm_connector.protocol.calls import Op
from cwm_connector.step.prefill_speed import PrefillSpeed
from tests.support.miniature import Miniature, chunk_files
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)  # four chunks and one block


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path)
    yield one
    one.close()


def on_disk(engine: Miniature) -> int:
    return sum(path.stat().st_size for path in chunk_files(engine.settings.home))


async def blocks_of(engine: Miniature, window: str) -> list[dict[str, Any]]:
    status = await engine.call(Op.STATUS, window_name=window, include_blocks=True)
    return list(status["blocks"])


# --- freeze ----------------------------------------------------------------------------------------------------------


async def test_a_freeze_tells_what_it_stored_and_the_disk_agrees(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    frozen = await engine.call(Op.FREEZE, session_id="alice", window_name="w", tags=["a"], description="first")
    assert (frozen["token_count"], frozen["captured_tokens"], frozen["recomputed_tokens"]) == (144, 144, 0)
    assert frozen["block_count"] == 5 == len(chunk_files(engine.settings.home))
    assert frozen["new_bytes"] == frozen["total_size_bytes"] == on_disk(engine)
    assert frozen["parent_window"] is None


async def test_freezing_again_stores_only_what_is_new(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w1")
    before = on_disk(engine)
    again = await engine.call(Op.FREEZE, session_id="alice", window_name="w2")
    assert again["new_bytes"] == 0 and on_disk(engine) == before and again["parent_window"] == "w1"
    await engine.serve(range(1000, 1000 + 12 * BLOCK_TOKENS), "alice")
    more = await engine.call(Op.FREEZE, session_id="alice", window_name="w3")
    assert more["new_bytes"] == on_disk(engine) - before > 0


async def test_two_sessions_with_the_same_beginning_share_its_chunks(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.serve([*TEXT[:128], *range(5000, 5016)], "bob")
    await engine.call(Op.FREEZE, session_id="alice", window_name="a")
    bob = await engine.call(Op.FREEZE, session_id="bob", window_name="b")
    assert [block["hash"] for block in await blocks_of(engine, "a")][:4] == [
        block["hash"] for block in await blocks_of(engine, "b")
    ][:4]
    assert bob["new_bytes"] == (await blocks_of(engine, "b"))[4]["size_bytes"]
    assert await engine.resume(TEXT, session_id="bob") == 0


async def test_evicted_blocks_are_computed_again_and_counted(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice", salt="s")
    await engine.evict()
    frozen = await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    assert frozen["captured_tokens"] == 144 and frozen["recomputed_tokens"] == 144
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await engine.resume(TEXT, session_id="bob") == 144


async def test_what_is_stored_already_is_loaded_rather_than_computed_again(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w1")
    await engine.serve(range(1000, 1000 + 12 * BLOCK_TOKENS), "alice")
    await engine.evict()
    frozen = await engine.call(Op.FREEZE, session_id="alice", window_name="w2")
    assert frozen["recomputed_tokens"] == 4 * BLOCK_TOKENS  # four whole chunks of two blocks were there


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"session_id": "nobody", "window_name": "w"}, Code.SESSION_NOT_FOUND),
        ({"session_id": "alice", "window_name": "w", "head": "h9"}, Code.SESSION_NOT_FOUND),
        ({"session_id": "no spaces", "window_name": "w"}, Code.SESSION_ID),
        ({"session_id": "alice", "window_name": "../w"}, Code.WINDOW_NAME),
        ({"session_id": "alice", "window_name": ".w"}, Code.WINDOW_NAME),
        ({"session_id": "alice", "window_name": "taken"}, Code.WINDOW_EXISTS),
        ({"session_id": "alice", "window_name": "w", "tags": ["no tag"]}, Code.ARGUMENT),
        ({"session_id": "alice", "window_name": "w", "description": "x" * 2001}, Code.ARGUMENT),
        ({"session_id": "short", "window_name": "w"}, Code.STATE),
    ],
)
async def test_a_refused_freeze_says_why_and_changes_nothing(engine: Miniature, args: dict, code: Code) -> None:
    await engine.serve(TEXT, "alice")
    await engine.serve(range(3), "short")
    await engine.call(Op.FREEZE, session_id="alice", window_name="taken")
    before = on_disk(engine)
    with pytest.raises(CWMError) as refused:
        await engine.call(Op.FREEZE, **args)
    assert refused.value.code is code
    assert on_disk(engine) == before
    assert (await engine.call(Op.LIST))["total"] == 1


async def test_a_freeze_over_the_disk_s_limit_is_refused_whole(tmp_path: Path) -> None:
    small = await Miniature.started(tmp_path, disk_cache_gb=60_000 / (1 << 30))
    await small.serve(TEXT, "alice")
    with pytest.raises(CWMError, match=r"CWM-4003.*CWM_DISK_CACHE_GB"):
        await small.call(Op.FREEZE, session_id="alice", window_name="w")
    assert chunk_files(tmp_path) == [] and (await small.call(Op.LIST))["total"] == 0
    small.close()


async def test_a_freeze_whose_disk_fails_leaves_no_window_and_works_again_afterwards(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    chunks, away = engine.settings.chunks_path, engine.settings.home / "away"
    chunks.rename(away)
    with pytest.raises(CWMError, match="CWM-4001"):
        await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    away.rename(chunks)
    assert (await engine.call(Op.LIST))["total"] == 0
    assert (await engine.call(Op.FREEZE, session_id="alice", window_name="w"))["captured_tokens"] == 144


async def test_a_cancelled_freeze_leaves_nothing_behind_and_blocks_nobody(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.serve(range(5000, 5064), "bob")
    free = engine.pool.get_num_free_blocks()
    held_up = threading.Event()
    engine.worker._save_thread.submit(held_up.wait, 60)
    freezing = asyncio.create_task(engine.call(Op.FREEZE, session_id="alice", window_name="w"))
    while engine.pool.get_num_free_blocks() == free:  # noqa: ASYNC110 until the freeze holds its blocks
        await asyncio.sleep(0)
    freezing.cancel()
    held_up.set()
    with pytest.raises(asyncio.CancelledError):
        await freezing
    assert engine.pool.get_num_free_blocks() == free
    bob = await engine.call(Op.FREEZE, session_id="bob", window_name="b")
    assert on_disk(engine) == bob["new_bytes"]
    assert (await engine.call(Op.LIST))["total"] == 1
    assert (await engine.call(Op.FREEZE, session_id="alice", window_name="w"))["captured_tokens"] == 144


async def test_two_clients_may_freeze_the_same_session_at_once(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    both = await asyncio.gather(*(engine.call(Op.FREEZE, session_id="alice", window_name=f"w{n}") for n in range(2)))
    assert sorted(each["new_bytes"] for each in both) == [0, both[0]["total_size_bytes"]]


async def test_of_two_clients_with_one_name_exactly_one_gets_it(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    freezes = (engine.call(Op.FREEZE, session_id="alice", window_name="w") for _ in range(2))
    both = await asyncio.gather(*freezes, return_exceptions=True)
    (error,) = [each for each in both if isinstance(each, CWMError)]
    assert error.code is Code.WINDOW_EXISTS
    assert (await engine.call(Op.THAW, window_name="w"))["restorable_tokens"] == 144


# --- thaw ------------------------------------------------------------------------------------------------------------


async def test_a_thaw_restores_every_page_for_its_session_and_its_salt_and_for_nobody_else(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    thawed = await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    assert (thawed["session_id"], thawed["restorable_tokens"], thawed["partial"]) == ("bob", 144, False)
    assert thawed["restored_by_tier"] == {"cpu": 144}
    assert await engine.resume(TEXT, session_id="bob") == 144
    assert await engine.resume(TEXT, salt=thawed["cache_salt"]) == 144
    assert await engine.resume(TEXT, session_id="alice") == 0
    assert await engine.resume(TEXT, salt="cwm-guess") == 0
    assert await engine.resume(TEXT) == 0


@pytest.mark.parametrize(("tokens_per_step", "faster"), [(1, None), (1_000_000_000, True), (200, False)])
async def test_a_thaw_says_when_computing_would_have_been_faster(
    engine: Miniature, tokens_per_step: int, faster: bool | None
) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    speed = engine.engine.scheduler.prefill_speed = PrefillSpeed(iter(range(100)).__next__)  # a step is a second or so
    speed.step_planned(tokens_per_step)
    speed.step_done()
    assert (await engine.call(Op.THAW, window_name="w"))["recompute_is_faster"] is faster
    assert (await engine.call(Op.THAW, window_name="w", prewarm=False))["recompute_is_faster"] is None
    rates = [each for each in (await engine.call(Op.METRICS))["metrics"] if "prefill" in each["name"]]
    assert [each["value"] for each in rates] == ([] if faster is None else [tokens_per_step])


async def test_every_thaw_has_a_salt_of_its_own(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    salts = {(await engine.call(Op.THAW, window_name="w"))["cache_salt"] for _ in range(5)}
    assert len(salts) == 5 and all(len(salt) >= 32 and not set(salt) & set("@/\\") for salt in salts)


async def test_after_a_restart_a_client_that_says_nothing_goes_on_in_its_thawed_session(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT)
    ((name,),) = [[each["session_id"]] for each in (await first.call(Op.SESSIONS))["sessions"]]
    await first.call(Op.FREEZE, session_id=name, window_name="w")
    first.close()
    later = await Miniature.started(tmp_path)
    assert await later.resume(TEXT) == 0  # nobody has thawed it
    await later.call(Op.THAW, window_name="w")
    await later.serve([*TEXT, 7, 7, 7])
    assert [each["session_id"] for each in (await later.call(Op.SESSIONS))["sessions"]] == [name]
    assert await later.resume_anonymous(TEXT) == 144
    assert await later.resume_anonymous(range(500, 700)) == 0
    later.close()


async def test_windows_and_thaws_outlive_the_engine(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    salt = (await first.call(Op.THAW, window_name="w", new_session_id="bob"))["cache_salt"]
    first.close()
    later = await Miniature.started(tmp_path)
    assert await later.resume(TEXT, salt=salt) == 144
    assert await later.resume(TEXT, session_id="bob") == 144
    thawed = await later.call(Op.THAW, window_name="w", prewarm=False)
    assert thawed["restored_by_tier"] == {"cpu": 144}  # the two requests before have brought it there
    later.close()


async def test_another_model_s_window_is_refused_with_the_field_and_both_values(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    first.close()
    other = await Miniature.started(tmp_path, passport=Passport({"weights": "large", "format": "1"}))
    with pytest.raises(CWMError) as refused:
        await other.call(Op.THAW, window_name="w")
    assert refused.value.code is Code.PASSPORT
    assert refused.value.context == {"field": "weights", "engine": "large", "window": "small"}
    assert await other.resume(TEXT, session_id="alice") == 0
    other.close()


async def test_a_damaged_chunk_shortens_the_thaw_and_is_said(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    blocks = (await first.call(Op.STATUS, window_name="w", include_blocks=True))["blocks"]
    first.close()
    (path,) = [path for path in chunk_files(tmp_path) if blocks[2]["hash"] in path.name]
    data = bytearray(path.read_bytes())
    data[5000] ^= 8
    path.write_bytes(data)
    later = await Miniature.started(tmp_path)
    thawed = await later.call(Op.THAW, window_name="w")
    assert thawed["partial"] and thawed["restorable_tokens"] == 64 and "CWM-4004" in thawed["warning"]
    assert await later.resume(TEXT, session_id="alice") == 64
    later.close()


async def test_without_prewarming_a_damaged_chunk_is_found_by_the_load(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    blocks = (await first.call(Op.STATUS, window_name="w", include_blocks=True))["blocks"]
    first.close()
    (path,) = [path for path in chunk_files(tmp_path) if blocks[1]["hash"] in path.name]
    path.write_bytes(path.read_bytes()[:-4096])
    later = await Miniature.started(tmp_path)
    await later.call(Op.THAW, window_name="w", prewarm=False)
    assert await later.resume(TEXT, session_id="alice") == 32
    assert await later.resume(TEXT, session_id="alice") == 32
    later.close()


# --- clone and delete ------------------------------------------------------------------------------------------------


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


async def test_deleting_gives_back_exactly_what_nobody_shares(engine: Miniature) -> None:
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


async def test_a_deleted_window_is_loaded_by_nobody(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    await engine.call(Op.DELETE, window_name="w")
    assert await engine.resume(TEXT, session_id="bob") == 0
    with pytest.raises(CWMError, match="CWM-2002"):
        await engine.call(Op.THAW, window_name="w")


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


# --- reads -----------------------------------------------------------------------------------------------------------


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


async def test_a_window_s_exact_tokens_can_be_had(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    ids = (await engine.call(Op.TOKENS, window_name="w"))["token_ids"]
    assert memoryview(ids).cast("i").tolist() == list(TEXT)


async def test_health_names_its_parts_and_can_be_asked_for_one(engine: Miniature) -> None:
    whole = await engine.call(Op.HEALTH)
    assert whole["status"] == "healthy"
    assert [each["name"] for each in whole["components"]] == ["engine", "catalog", "cpu", "disk", "redis"]
    engine.settings.chunks_path.rename(engine.settings.home / "away")
    part = await engine.call(Op.HEALTH, component="disk")
    assert part["status"] == "degraded" and part["components"][0]["status"] == "unhealthy"


async def test_status_wants_exactly_one_name(engine: Miniature) -> None:
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


async def test_a_store_that_is_removed_under_the_engine_acknowledges_nothing(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    home = engine.settings.home
    away = home.with_name(f"{home.name}-away")
    home.rename(away)
    for call in (
        engine.call(Op.FREEZE, session_id="alice", window_name="w"),
        engine.call(Op.CLONE, source_window="w", target_window="c"),
    ):
        with pytest.raises(CWMError, match="CWM-4001"):
            await call
    away.rename(home)
    assert (await engine.call(Op.FREEZE, session_id="alice", window_name="w"))["captured_tokens"] == 144


async def test_a_catalog_that_is_replaced_under_the_engine_acknowledges_nothing(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    engine.settings.catalog_path.unlink()
    with pytest.raises(CWMError, match=r"CWM-4001.*removed or replaced"):
        await engine.call(Op.CLONE, source_window="w", target_window="c")
