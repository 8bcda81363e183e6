"""delete.py: what nobody refers to goes, from every tier, and nothing else does."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.protocol.calls import Op
from cwm_connector.tiers.base import ChunkId
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import RedisServer
from tests.support.stores import CHUNK_BYTES, demote, frozen, redis_bytes, text, tiers_of


@pytest.fixture
async def engine(tmp_path: Path, server: RedisServer) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path, redis_url=server.url)
    yield one
    one.close()


async def test_a_delete_frees_exactly_the_unshared_chunks_in_every_tier(engine: Miniature) -> None:
    stem = text(1, chunks=4)
    await frozen(engine, "a", stem)
    await frozen(engine, "b", stem[:64] + text(2, chunks=2))
    await demote(engine, "a")
    deleted = await engine.call(Op.DELETE, window_name="a")
    assert (deleted["blocks_deleted"], deleted["blocks_shared"]) == (2, 2)
    assert deleted["space_freed_bytes"] == 2 * CHUNK_BYTES
    assert redis_bytes(engine) == 2 * CHUNK_BYTES  # the two that b shares
    assert await tiers_of(engine, "b") == {"cpu": 4, "disk": 2, "redis": 2}


async def test_a_collection_removes_orphans_of_every_tier_and_keeps_what_windows_need(
    engine: Miniature, server: RedisServer
) -> None:
    await frozen(engine, "w", text(1))
    await demote(engine, "w")
    await frozen(engine, "v", text(2))
    orphan = ChunkId(ChunkKey(bytes(32)), 0)
    buffer = engine.cpu.reserve(CHUNK_BYTES)
    for store in engine.durable_tiers:
        store.write(orphan, buffer.view).result()
    engine.cpu.release(buffer)
    collected = await engine.call(Op.COLLECT)
    assert (collected["chunks_deleted"], collected["space_freed_bytes"]) == (2, 2 * CHUNK_BYTES)
    assert collected["warning"] is None
    again = await engine.call(Op.COLLECT)
    assert (again["chunks_deleted"], again["space_freed_bytes"]) == (0, 0)
    for name in ("w", "v"):
        assert (await engine.call(Op.THAW, window_name=name))["restorable_tokens"] == 96


async def test_a_collection_completes_without_a_dead_redis_and_warns(engine: Miniature, server: RedisServer) -> None:
    await frozen(engine, "w", text(1))
    server.kill()
    collected = await engine.call(Op.COLLECT)
    assert "redis: CWM-5002" in collected["warning"] and len(chunk_files(engine.settings.home)) == 3


async def test_chunks_that_a_delete_leaves_in_a_dead_redis_are_collected_later(
    engine: Miniature, server: RedisServer
) -> None:
    await frozen(engine, "w", text(1))
    await demote(engine, "w")
    server.kill()
    deleted = await engine.call(Op.DELETE, window_name="w")
    assert (deleted["blocks_deleted"], deleted["space_freed_bytes"]) == (3, 0)
    server.start()
    for _ in range(100):
        collected = await engine.call(Op.COLLECT)
        if collected["warning"] is None:
            break
    assert collected["chunks_deleted"] == 3 and redis_bytes(engine) == 0


async def test_a_delete_is_answered_although_its_window_has_left_the_list_already(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    await engine.call(Op.DELETE, window_name="w")
    with pytest.raises(CWMError, match="CWM-2002"):
        await engine.call(Op.DELETE, window_name="w")
    totals = await engine.catalog.run(lambda catalog: catalog.totals())
    assert totals.tiers[TierName.DISK].chunks == 0
