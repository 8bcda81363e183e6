"""tiering.py: chunks move by limits, age and use, and nothing leaves a tier before another is shown to have it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros, TierName
from cwm_connector.core.units import GIB
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import RedisServer, redis_server
from tests.support.stores import (
    CHUNK_BYTES,
    demote,
    files_of,
    forget_memory,
    frozen,
    hashes_of,
    redis_bytes,
    text,
    tiers_of,
)


@pytest.fixture
async def engine(tmp_path: Path, server: RedisServer) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path, redis_url=server.url, disk_cache_gb=10 * CHUNK_BYTES / GIB)
    yield one
    one.close()


async def test_a_freeze_over_the_disk_s_limit_moves_the_coldest_chunks_to_redis(engine: Miniature) -> None:
    for number in range(3):
        await frozen(engine, f"w{number}", text(number))
    await engine.call(Op.THAW, window_name="w0")
    await frozen(engine, "new", text(9))
    assert (await tiers_of(engine, "w1"))["redis"] >= 2  # the longest unused
    assert "redis" not in await tiers_of(engine, "w0")  # thawed since
    assert (await tiers_of(engine, "new"))["disk"] == 3
    assert len(chunk_files(engine.settings.home)) <= 10


async def test_a_freeze_that_needs_room_does_not_move_the_chunks_that_it_refers_to(engine: Miniature) -> None:
    await frozen(engine, "stem", text(1, chunks=5))
    await frozen(engine, "other", text(2, chunks=4))
    await engine.serve([*text(1, chunks=5), *text(3)], "stem")
    await engine.call(Op.FREEZE, session_id="stem", window_name="grown")
    assert await tiers_of(engine, "grown") == {"cpu": 8, "disk": 8}
    assert (await tiers_of(engine, "other"))["redis"] == 2


async def test_a_demoted_window_is_thawed_from_redis_bit_exact_and_comes_back_to_the_disk(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    assert await demote(engine, "w") == 3 * CHUNK_BYTES
    assert not chunk_files(engine.settings.home) and redis_bytes(engine) == 3 * CHUNK_BYTES
    forget_memory(engine)
    assert await tiers_of(engine, "w") == {"redis": 3}
    thawed = await engine.call(Op.THAW, window_name="w")
    assert thawed["restored_by_tier"] == {"redis": 96} and not thawed["partial"]
    assert await engine.resume(text(1), session_id="w") == 96
    async with engine.engine.chunk_lock:
        pass  # the way back to the disk takes its turn before
    assert await tiers_of(engine, "w") == {"cpu": 3, "disk": 3, "redis": 3}


async def test_chunks_over_the_age_limit_are_moved_and_younger_ones_stay(engine: Miniature) -> None:
    tiering = engine.operations.tiering
    await frozen(engine, "old", text(1))
    await frozen(engine, "young", text(2))
    for row in await engine.catalog.run(lambda catalog: catalog.chunks_of("old")):
        tiering._uses.used_at[row.key] = Micros(0)
    await tiering.review()
    assert "disk" not in await tiers_of(engine, "old")
    assert "redis" not in await tiers_of(engine, "young")


async def test_a_nearly_full_disk_is_relieved_before_a_freeze_needs_room(engine: Miniature) -> None:
    for number in range(3):
        await frozen(engine, f"w{number}", text(number))
    await frozen(engine, "last", text(9, chunks=1))
    await engine.operations.tiering.review()
    totals = await engine.catalog.run(lambda catalog: catalog.totals())
    assert totals.tiers[TierName.DISK].stored_bytes == 8 * CHUNK_BYTES
    assert totals.tiers[TierName.REDIS].chunks == 2


async def test_a_window_larger_than_the_disk_is_refused_and_nothing_is_moved_for_it(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    with pytest.raises(CWMError, match="CWM-4003"):
        await frozen(engine, "huge", text(2, chunks=11))
    assert "redis" not in await tiers_of(engine, "w") and len(chunk_files(engine.settings.home)) == 3


async def test_nothing_leaves_the_disk_for_a_redis_that_does_not_keep_its_data(tmp_path: Path) -> None:
    with redis_server() as forgetful:
        engine = await Miniature.started(tmp_path, redis_url=forgetful.url, disk_cache_gb=4 * CHUNK_BYTES / GIB)
        await frozen(engine, "w", text(1))
        assert await demote(engine, "w") == 0
        with pytest.raises(CWMError, match=r"CWM-4003.*health_check"):
            await frozen(engine, "more", text(2))
        assert await tiers_of(engine, "w") == {"cpu": 3, "disk": 3}
        health = await engine.call(Op.HEALTH, component="redis")
        assert health["status"] == "degraded" and "append-only" in health["components"][0]["message"]
        engine.close()


async def test_with_a_dead_redis_only_the_freeze_that_needs_it_is_refused(
    engine: Miniature, server: RedisServer
) -> None:
    await frozen(engine, "w", text(1, chunks=7))
    server.kill()
    with pytest.raises(CWMError, match="CWM-4003"):
        await frozen(engine, "big", text(2, chunks=4))
    await frozen(engine, "small", text(3, chunks=2))
    assert (await engine.call(Op.THAW, window_name="w"))["restorable_tokens"] == 7 * 32
    server.start()
    assert await recovers(engine, "big", text(2, chunks=4))


async def recovers(engine: Miniature, name: str, tokens: list[int]) -> bool:
    """True once a freeze that failed for Redis' sake goes through."""
    for _ in range(200):
        try:
            await frozen(engine, name, tokens)
            return True
        except CWMError as problem:
            assert problem.code is Code.QUOTA
    return False


async def test_a_copy_that_redis_returns_changed_does_not_count_and_the_disk_keeps_its_own(
    engine: Miniature, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await frozen(engine, "w", text(1))
    redis = next(tier for tier in engine.durable_tiers if tier.name is TierName.REDIS)  # the worker's
    honest = redis.write

    def write(chunk, sealed, claim=""):
        bent = memoryview(bytearray(sealed))
        bent[5000] ^= 1
        return honest(chunk, bent, claim)

    monkeypatch.setattr(redis, "write", write)
    assert await demote(engine, "w") == 0
    assert await tiers_of(engine, "w") == {"cpu": 3, "disk": 3}


async def test_a_copy_found_bad_by_a_load_is_replaced_from_another_tier(
    engine: Miniature,
) -> None:
    await frozen(engine, "w", text(1))
    await demote(engine, "w")
    await engine.operations.tiering.restore([row.key for row in await rows(engine, "w")])
    (damaged,) = files_of(engine.settings.home, (await hashes_of(engine, "w"))[1:2])
    content = bytearray(damaged.read_bytes())
    content[6000] ^= 16
    damaged.write_bytes(content)
    forget_memory(engine)
    thawed = await engine.call(Op.THAW, window_name="w")
    assert thawed["restored_by_tier"] == {"disk": 64, "redis": 32} and not thawed["partial"]
    await engine.operations.tiering.tick()
    assert await tiers_of(engine, "w") == {"cpu": 3, "disk": 3, "redis": 3}
    content[6000] ^= 16
    assert damaged.read_bytes() == bytes(content)


async def test_a_chunk_that_no_tier_has_is_stored_again_by_the_next_freeze_of_its_tokens(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await frozen(first, "w", text(1))
    (gone,) = files_of(tmp_path, (await hashes_of(first, "w"))[2:])
    gone.unlink()
    forget_memory(first)
    assert (await first.call(Op.THAW, window_name="w"))["restorable_tokens"] == 64
    again = await frozen(first, "again", text(1))
    assert again["new_bytes"] == CHUNK_BYTES and gone.exists()
    assert (await first.call(Op.THAW, window_name="w"))["restorable_tokens"] == 96  # the old window is whole as well
    first.close()


async def rows(engine: Miniature, name: str):
    return await engine.catalog.run(lambda catalog: catalog.chunks_of(name))


async def test_a_restarted_engine_knows_where_chunks_lie_and_which_were_used_last(
    tmp_path: Path, server: RedisServer
) -> None:
    room = 10 * CHUNK_BYTES / GIB
    first = await Miniature.started(tmp_path, redis_url=server.url, disk_cache_gb=room)
    for number in range(3):
        await frozen(first, f"w{number}", text(number))
    await demote(first, "w2")
    await first.call(Op.THAW, window_name="w0")
    first.close()
    later = await Miniature.started(tmp_path, redis_url=server.url, disk_cache_gb=room)
    assert [await tiers_of(later, name) for name in ("w0", "w2")] == [{"disk": 3}, {"redis": 3}]
    await frozen(later, "new", text(9, chunks=5))
    assert "redis" in await tiers_of(later, "w1") and "redis" not in await tiers_of(later, "w0")
    later.close()
