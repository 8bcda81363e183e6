"""A tier is a folder: a toy tier is added by its package and one entry in the registry, and the engine uses it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cwm_connector.core.types import TierName
from cwm_connector.protocol.calls import Op
from tests.cwm_connector.tiers import toy
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import redis_server
from tests.support.stores import CHUNK_BYTES, demote, forget_memory, frozen, text, tiers_of

GIB = 1 << 30


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy tier's folder, with the tier in the registry."""
    toy.register(monkeypatch)
    folder = tmp_path / "toy"
    folder.mkdir()
    return folder


@pytest.fixture
async def engine(tmp_path: Path, box: Path) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path, disk_cache_gb=4 * CHUNK_BYTES / GIB)
    yield one
    one.close()


def toys(box: Path) -> int:
    return len(list(box.iterdir()))


async def test_a_window_goes_to_the_new_tier_and_comes_back_bit_exact(engine: Miniature, box: Path) -> None:
    await frozen(engine, "w", text(1))
    assert await demote(engine, "w") == 3 * CHUNK_BYTES
    assert (chunk_files(engine.settings.home), toys(box)) == ([], 3)  # no other copy can be read
    forget_memory(engine)
    assert await tiers_of(engine, "w") == {"toy": 3}
    thawed = await engine.call(Op.THAW, window_name="w")
    assert thawed["restored_by_tier"] == {"toy": 96} and not thawed["partial"]
    assert await engine.resume(text(1), session_id="w") == 96
    async with engine.engine.chunk_lock:
        pass  # the way back to the disk takes its turn before
    assert await tiers_of(engine, "w") == {"cpu": 3, "disk": 3, "toy": 3}


async def test_a_freeze_over_the_disk_s_limit_moves_chunks_to_the_new_tier(engine: Miniature, box: Path) -> None:
    await frozen(engine, "old", text(1))
    await frozen(engine, "new", text(2))
    assert toys(box) == 2 and len(chunk_files(engine.settings.home)) == 4


async def test_a_restart_finds_what_the_new_tier_has_and_a_delete_removes_it(tmp_path: Path, box: Path) -> None:
    first = await Miniature.started(tmp_path)
    await frozen(first, "w", text(1))
    await demote(first, "w")
    first.close()
    (box / "half.new").write_bytes(b"left behind")
    later = await Miniature.started(tmp_path)
    assert toys(box) == 3
    assert await tiers_of(later, "w") == {"toy": 3}
    await later.call(Op.DELETE, window_name="w")
    assert toys(box) == 0
    later.close()


async def test_it_is_shown_in_statistics_and_health(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    await demote(engine, "w")
    tiers = (await engine.call(Op.STATS))["kv_store"]["tiers"]
    assert list(tiers) == ["cpu", "disk", "redis", "toy"] and tiers["redis"] is None
    assert tiers["toy"] == {"blocks": 3, "bytes": 3 * CHUNK_BYTES, "limit_bytes": 1 << 20}
    (component,) = (await engine.call(Op.HEALTH, component="toy"))["components"]
    assert (component["status"], component["message"]) == ("healthy", "tidy")


async def test_chunks_pass_over_a_tier_that_keeps_nothing(tmp_path: Path, box: Path) -> None:
    with redis_server() as forgetful:
        engine = await Miniature.started(tmp_path, redis_url=forgetful.url)
        assert list(engine.engine.durable_tiers) == [TierName.DISK, TierName.REDIS, TierName("toy")]
        await frozen(engine, "w", text(1))
        await demote(engine, "w")
        assert await tiers_of(engine, "w") == {"cpu": 3, "toy": 3}
        engine.close()
