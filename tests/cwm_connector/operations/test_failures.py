"""Whatever fails, the engine serves on, says what is so, and recovers by itself; nothing acknowledged is lost.

Real failures, each at the place where it happens: a file system that is full or read-only, a folder that is gone, CPU
memory that others hold, two engines on one store, clients that get in each other's way.
"""

import asyncio
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.core.units import GIB
from cwm_connector.protocol.calls import Op
from cwm_connector.store.lock import HomeLock
from cwm_connector.tiers.base import ChunkId
from tests.cwm_connector.tiers.mounts import mounted, read_only
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import redis_server
from tests.support.stores import CHUNK_BYTES, CHUNK_TOKENS, demote, forget_memory, frozen, redis_bytes, text, tiers_of


async def listed(engine: Miniature) -> list[str]:
    return sorted(window["name"] for window in (await engine.call(Op.LIST, limit=100))["windows"])


async def whole(engine: Miniature, name: str, tokens: list[int]) -> bool:
    """The window is thawed whole, and its pages are those that computing would leave."""
    thawed = await engine.call(Op.THAW, window_name=name, new_session_id=f"{name}-reader")
    return not thawed["partial"] and await engine.resume(tokens, session_id=f"{name}-reader") == len(tokens)


# --- the disk --------------------------------------------------------------------------------------------------------


async def test_a_freeze_on_a_full_disk_is_refused_whole_and_succeeds_once_there_is_room(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "small", size_mib=1) as folder:
        engine = await Miniature.started(tmp_path / "home", disk_path=str(folder))
        refused = 0
        kept = []
        for number in range(30):
            try:
                await frozen(engine, f"w{number}", text(number))
                kept.append(number)
            except CWMError as problem:
                assert problem.code is Code.QUOTA
                refused += 1
        assert refused and kept and await listed(engine) == sorted(f"w{number}" for number in kept)
        assert all([await whole(engine, f"w{number}", text(number)) for number in kept])
        for number in kept[:4]:
            await engine.call(Op.DELETE, window_name=f"w{number}")
        await frozen(engine, "later", text(99))
        assert await whole(engine, "later", text(99))
        engine.close()


async def test_a_home_that_became_read_only_is_still_read_and_takes_freezes_again_afterwards(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "disk", size_mib=8) as folder:
        engine = await Miniature.started(tmp_path / "home", disk_path=str(folder))
        await frozen(engine, "w", text(1))
        forget_memory(engine)
        with read_only(folder.parent):
            with pytest.raises(CWMError, match="CWM-4001") as refused:
                await frozen(engine, "v", text(2))
            assert refused.value.retryable
            assert await listed(engine) == ["w"] and await whole(engine, "w", text(1))
            health = await engine.call(Op.HEALTH, component="disk")
            assert health["components"][0]["status"] == "unhealthy"
        await engine.call(Op.FREEZE, session_id="v", window_name="v")
        assert await whole(engine, "v", text(2))
        engine.close()


async def test_an_engine_without_its_chunk_folder_loses_chunks_and_goes_on(engine: Miniature, tmp_path: Path) -> None:
    await frozen(engine, "w", text(1))
    forget_memory(engine)
    (tmp_path / "chunks").rename(tmp_path / "away")
    thawed = await engine.call(Op.THAW, window_name="w")
    assert thawed["partial"] and thawed["restorable_tokens"] == 0 and thawed["warning"]
    assert await engine.resume(text(1), session_id="w") == 0
    with pytest.raises(CWMError, match="CWM-4001"):
        await frozen(engine, "v", text(2))
    (tmp_path / "away").rename(tmp_path / "chunks")
    await engine.call(Op.FREEZE, session_id="v", window_name="v")
    assert await whole(engine, "v", text(2))


async def test_copies_that_were_out_of_reach_are_found_again_by_the_next_start(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await frozen(first, "w", text(1))
    forget_memory(first)
    (tmp_path / "chunks").rename(tmp_path / "away")
    await first.call(Op.THAW, window_name="w")
    await first.operations.tiering.tick()
    assert await tiers_of(first, "w") == {}
    (tmp_path / "away").rename(tmp_path / "chunks")
    first.close()
    later = await Miniature.started(tmp_path)
    assert await tiers_of(later, "w") == {"disk": 3} and await whole(later, "w", text(1))
    later.close()


# --- Redis -----------------------------------------------------------------------------------------------------------


async def test_a_redis_that_dies_in_the_middle_of_a_thaw_leaves_a_partial_one_and_a_whole_one_when_it_is_back(
    tmp_path: Path,
) -> None:
    with redis_server(append_fsync="always") as server:
        engine = await Miniature.started(tmp_path, redis_url=server.url)
        await frozen(engine, "w", text(1, chunks=12))
        await demote(engine, "w")
        forget_memory(engine)
        killed = False

        def kill(done: int, total: int, _: str) -> None:
            nonlocal killed
            if not killed:
                killed = True
                server.kill()

        thawed = await engine.call(Op.THAW, kill, window_name="w")
        assert thawed["restorable_tokens"] % CHUNK_TOKENS == 0
        if thawed["partial"]:
            assert "CWM-5002" in thawed["warning"]
        assert await engine.resume(text(1, chunks=12), session_id="w") >= thawed["restorable_tokens"]
        server.start()
        for _ in range(200):
            thawed = await engine.call(Op.THAW, window_name="w")
            if not thawed["partial"]:
                break
        assert await whole(engine, "w", text(1, chunks=12))
        engine.close()


async def test_a_redis_at_its_memory_limit_keeps_the_disk_s_copies_where_they_are(tmp_path: Path) -> None:
    with redis_server(append_fsync="always", maxmemory="3mb") as server:
        engine = await Miniature.started(tmp_path, redis_url=server.url)
        for number in range(40):
            await frozen(engine, f"w{number}", text(number, chunks=5))
        moved = [number for number in range(40) if await demote(engine, f"w{number}") == 5 * CHUNK_BYTES]
        assert moved and len(moved) < 40
        forget_memory(engine)
        for number in range(40):
            assert await whole(engine, f"w{number}", text(number, chunks=5))
        engine.close()


async def test_a_demotion_to_a_redis_that_does_not_answer_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(append_fsync="always") as server:
        engine = await Miniature.started(tmp_path, redis_url=server.url)
        await frozen(engine, "w", text(1))
        server.pause()
        try:
            async with asyncio.timeout(60):
                assert await demote(engine, "w") == 0
        finally:
            server.resume()
        assert await tiers_of(engine, "w") == {"cpu": 3, "disk": 3}
        async with asyncio.timeout(60):
            while not await demote(engine, "w"):
                pass
        assert await tiers_of(engine, "w") == {"cpu": 3, "redis": 3}
        engine.close()


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_memory_full_of_pinned_chunks_refuses_a_freeze_computes_what_it_can_t_load_and_recovers(
    tmp_path: Path,
) -> None:
    engine = await Miniature.started(tmp_path, cpu_cache_gb=3.5 * CHUNK_BYTES / GIB)
    await frozen(engine, "a", text(1))
    await engine.call(Op.THAW, window_name="a")  # a freeze leaves most of a small memory to others
    pinned = [ChunkId(row.key, 0) for row in await engine.catalog.run(lambda catalog: catalog.chunks_of("a"))]
    for chunk in pinned:
        assert engine.cpu.pin(chunk) is not None
    with pytest.raises(CWMError, match="CWM-7001"):
        await frozen(engine, "b", text(2))
    assert await listed(engine) == ["a"] and len(chunk_files(tmp_path)) == 3
    for chunk in pinned:
        engine.cpu.unpin(chunk)
    await engine.call(Op.FREEZE, session_id="b", window_name="b")
    assert await whole(engine, "b", text(2)) and await whole(engine, "a", text(1))
    pinned = [ChunkId(row.key, 0) for row in await engine.catalog.run(lambda catalog: catalog.chunks_of("a"))]
    for chunk in pinned:
        assert engine.cpu.pin(chunk) is not None
    assert await engine.resume(text(2), session_id="b-reader") == 0  # nowhere to read it to: computed instead
    for chunk in pinned:
        engine.cpu.unpin(chunk)
    engine.close()


async def test_a_chunk_larger_than_the_cpu_tier_is_refused_with_what_to_do(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, cpu_cache_gb=0.9 * CHUNK_BYTES / GIB)
    with pytest.raises(CWMError, match=r"CWM-7001.*CWM_CPU_CACHE_GB"):
        await frozen(engine, "w", text(1))
    assert await listed(engine) == [] and not chunk_files(tmp_path)
    engine.close()


async def test_a_chunk_larger_than_the_disk_s_limit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, disk_cache_gb=0.9 * CHUNK_BYTES / GIB)
    with pytest.raises(CWMError, match="CWM-4003"):
        await frozen(engine, "w", text(1, chunks=1))
    assert await listed(engine) == [] and not chunk_files(tmp_path)
    engine.close()


# --- each other ------------------------------------------------------------------------------------------------------


def test_a_second_engine_on_one_home_is_refused_with_the_holder_s_process(tmp_path: Path) -> None:
    first = HomeLock(tmp_path)
    first.acquire()
    with pytest.raises(CWMError, match=r"CWM-3001.*process \d+"):
        HomeLock(tmp_path).acquire()
    first.release()
    HomeLock(tmp_path).acquire()


async def test_two_clients_that_freeze_one_session_at_once_store_its_bytes_once(engine: Miniature) -> None:
    await engine.serve(text(1), "s")
    results = await asyncio.gather(
        *(engine.call(Op.FREEZE, session_id="s", window_name=f"w{number}") for number in range(4))
    )
    assert sorted(result["new_bytes"] for result in results) == [0, 0, 0, 3 * CHUNK_BYTES]
    for number in range(3):
        await engine.call(Op.DELETE, window_name=f"w{number}")
    assert await whole(engine, "w3", text(1))


async def test_only_one_of_two_clients_gets_a_name(engine: Miniature) -> None:
    await engine.serve(text(1), "s")
    results = await asyncio.gather(
        *(engine.call(Op.FREEZE, session_id="s", window_name="w") for _ in range(3)), return_exceptions=True
    )
    errors = [result for result in results if isinstance(result, CWMError)]
    assert len(errors) == 2 and {error.code for error in errors} == {Code.WINDOW_EXISTS}


async def test_a_window_deleted_during_its_thaw_is_no_longer_loaded(engine: Miniature) -> None:
    await frozen(engine, "w", text(1, chunks=12))
    forget_memory(engine)
    begun = asyncio.Event()
    thawing = asyncio.create_task(engine.call(Op.THAW, lambda *_: begun.set(), window_name="w", new_session_id="r"))
    await begun.wait()
    await engine.call(Op.DELETE, window_name="w")
    outcome = (await asyncio.gather(thawing, return_exceptions=True))[0]
    if isinstance(outcome, CWMError):
        assert outcome.code is Code.WINDOW_NOT_FOUND
    assert await engine.resume(text(1, chunks=12), session_id="r") == 0
    assert await listed(engine) == [] and not chunk_files(engine.settings.home)


async def test_a_clone_made_during_the_delete_of_its_source_is_whole_or_refused(engine: Miniature) -> None:
    for number in range(20):
        await frozen(engine, f"w{number}", text(number))
        outcomes = await asyncio.gather(
            engine.call(Op.DELETE, window_name=f"w{number}"),
            engine.call(Op.CLONE, source_window=f"w{number}", target_window=f"c{number}"),
            return_exceptions=True,
        )
        if isinstance(outcomes[1], CWMError):
            assert outcomes[1].code is Code.WINDOW_NOT_FOUND and f"c{number}" not in await listed(engine)
        else:
            assert await whole(engine, f"c{number}", text(number))
    kept = await listed(engine)
    totals = await engine.catalog.run(lambda catalog: catalog.totals())
    assert totals.tiers[TierName.DISK].chunks == 3 * len(kept) == len(chunk_files(engine.settings.home))


async def test_a_demotion_during_thaws_and_deletes_loses_nothing(tmp_path: Path) -> None:
    with redis_server(append_fsync="always") as server:
        engine = await Miniature.started(tmp_path, redis_url=server.url)
        for number in range(10):
            await frozen(engine, f"w{number}", text(number))
        forget_memory(engine)
        await asyncio.gather(
            *(demote(engine, f"w{number}") for number in range(10)),
            *(engine.call(Op.THAW, window_name=f"w{number}") for number in range(5)),
            *(engine.call(Op.DELETE, window_name=f"w{number}") for number in range(5, 8)),
        )
        left = [0, 1, 2, 3, 4, 8, 9]
        assert all([await whole(engine, f"w{number}", text(number)) for number in left])
        assert (await engine.call(Op.VERIFY))["bad_copies"] == 0
        for number in left:
            await engine.call(Op.DELETE, window_name=f"w{number}")
        await engine.call(Op.COLLECT)
        assert not chunk_files(tmp_path) and redis_bytes(engine) == 0
        engine.close()
