"""verify.py: every stored copy is read and checked; what is bad is named, and with `repair` replaced."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.protocol.calls import Op
from cwm_connector.tiers.base import ChunkId
from tests.support.miniature import Miniature
from tests.support.redis_server import RedisServer
from tests.support.stores import (
    CHUNK_BYTES,
    demote,
    files_of,
    flip,
    forget_memory,
    frozen,
    hashes_of,
    text,
    tiers_of,
)


@pytest.fixture
async def engine(tmp_path: Path, server: RedisServer) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path, redis_url=server.url)
    yield one
    one.close()


async def in_both(engine: Miniature, name: str, seed: int) -> None:
    """A window that lies on disk and in Redis, and not in memory."""
    await frozen(engine, name, text(seed))
    await demote(engine, name)
    await engine.operations.tiering.restore(
        [row.key for row in await engine.catalog.run(lambda catalog: catalog.chunks_of(name))]
    )
    forget_memory(engine)


async def test_a_sound_home_is_read_whole_without_findings(engine: Miniature) -> None:
    await in_both(engine, "w", 1)
    report = await engine.call(Op.VERIFY)
    assert (report["chunks"], report["copies"], report["bytes"]) == (3, 6, 6 * CHUNK_BYTES)
    assert (report["bad_copies"], report["unread"], report["bad"]) == (0, 0, [])


@pytest.mark.parametrize("at", [3, 40, 4095, 6000, CHUNK_BYTES - 1])
async def test_without_repair_a_bad_copy_is_reported_with_its_windows_and_kept(engine: Miniature, at: int) -> None:
    await in_both(engine, "w", 1)
    await engine.call(Op.CLONE, source_window="w", target_window="c")
    hashes = await hashes_of(engine, "w")
    flip(files_of(engine.settings.home, hashes[1:2])[0], at)
    report = await engine.call(Op.VERIFY)
    assert report["bad_copies"] == 1 and report["repaired"] == 0
    (bad,) = report["bad"]
    assert (bad["hash"], bad["storage_tier"], sorted(bad["windows"])) == (hashes[1], "disk", ["c", "w"])
    assert bad["fault"].startswith("CWM-4004")
    assert await tiers_of(engine, "w") == {"disk": 3, "redis": 3}


async def test_repair_replaces_a_bad_copy_from_the_good_one(engine: Miniature) -> None:
    await in_both(engine, "w", 1)
    (path,) = files_of(engine.settings.home, (await hashes_of(engine, "w"))[:1])
    sound = path.read_bytes()
    flip(path)
    report = await engine.call(Op.VERIFY, repair=True)
    assert (report["bad_copies"], report["repaired"]) == (1, 1)
    assert path.read_bytes() == sound and await tiers_of(engine, "w") == {"disk": 3, "redis": 3}
    assert (await engine.call(Op.VERIFY))["bad_copies"] == 0


async def test_repair_drops_a_chunk_without_any_good_copy_and_its_window_says_so(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    forget_memory(engine)
    flip(files_of(engine.settings.home, (await hashes_of(engine, "w"))[1:2])[0])
    report = await engine.call(Op.VERIFY, repair=True)
    assert (report["bad_copies"], report["repaired"]) == (1, 0)
    assert await tiers_of(engine, "w") == {"disk": 2}
    thawed = await engine.call(Op.THAW, window_name="w")
    assert thawed["partial"] and thawed["restorable_tokens"] == 32


async def test_a_missing_file_is_a_bad_copy(engine: Miniature) -> None:
    await in_both(engine, "w", 1)
    files_of(engine.settings.home, (await hashes_of(engine, "w"))[:1])[0].unlink()
    report = await engine.call(Op.VERIFY, repair=True)
    assert (report["bad_copies"], report["repaired"]) == (1, 1)
    assert len(files_of(engine.settings.home, await hashes_of(engine, "w"))) == 3


async def test_a_bad_value_in_redis_is_replaced_from_the_disk(engine: Miniature, server: RedisServer) -> None:
    await in_both(engine, "w", 1)
    key = (await hashes_of(engine, "w"))[2]
    client = server.client()
    (name,) = client.keys(f"*{key}*chunk")
    value = bytearray(bytes(client.get(name)))  # type: ignore[arg-type]
    value[7000] ^= 2
    client.set(name, bytes(value))
    report = await engine.call(Op.VERIFY, repair=True)
    assert [bad["storage_tier"] for bad in report["bad"]] == ["redis"] and report["repaired"] == 1
    value[7000] ^= 2
    assert client.get(name) == bytes(value)


async def test_copies_in_a_tier_that_does_not_answer_are_unread_and_not_bad(
    engine: Miniature, server: RedisServer
) -> None:
    await in_both(engine, "w", 1)
    server.kill()
    report = await engine.call(Op.VERIFY, repair=True)
    assert (report["bad_copies"], report["unread"]) == (0, 3)
    assert await tiers_of(engine, "w") == {"disk": 3, "redis": 3}


async def test_a_bad_copy_in_memory_is_dropped(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    from cwm_connector.tiers.base import ChunkId

    (row, *_) = await engine.catalog.run(lambda catalog: catalog.chunks_of("w"))
    resident = engine.cpu.pin(ChunkId(row.key, 0))
    assert resident is not None
    resident.view[5000] ^= 1
    engine.cpu.unpin(ChunkId(row.key, 0))
    report = await engine.call(Op.VERIFY)
    assert [bad["storage_tier"] for bad in report["bad"]] == ["cpu"] and report["repaired"] == 1
    assert not engine.cpu.contains(ChunkId(row.key, 0))


async def test_an_interrupted_verification_continues_after_a_restart(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await frozen(first, "w", text(1, chunks=20))
    walked = asyncio.Event()
    slowly = asyncio.create_task(first.call(Op.VERIFY, lambda *_: walked.set(), rate_mb_s=0.001))
    await walked.wait()
    slowly.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slowly
    first.close()
    later = await Miniature.started(tmp_path)
    report = await later.call(Op.VERIFY)
    assert report["resumed"] and report["chunks"] == 12
    again = await later.call(Op.VERIFY)
    assert not again["resumed"] and again["chunks"] == 20
    later.close()


async def test_a_restarted_verification_begins_at_the_first_chunk(engine: Miniature) -> None:
    await frozen(engine, "w", text(1, chunks=9))
    await engine.catalog.run(lambda catalog: catalog.note("verify.cursor", "ff" * 32))
    assert (await engine.call(Op.VERIFY, restart=True))["chunks"] == 9


async def test_the_rate_limits_a_verification(engine: Miniature) -> None:
    await frozen(engine, "w", text(1, chunks=16))
    forget_memory(engine)
    report = await engine.call(Op.VERIFY, rate_mb_s=1.0)
    assert report["duration_ms"] >= 16 * CHUNK_BYTES / (1 << 20) * 1000


async def test_only_one_verification_runs_at_a_time(engine: Miniature) -> None:
    await frozen(engine, "w", text(1, chunks=9))
    begun = asyncio.Event()
    first = asyncio.create_task(engine.call(Op.VERIFY, lambda *_: begun.set(), rate_mb_s=0.5))
    await begun.wait()
    with pytest.raises(CWMError, match="CWM-7003"):
        await engine.call(Op.VERIFY)
    first.cancel()


async def test_freezes_and_deletes_go_on_during_a_verification_and_deleted_chunks_are_not_bad(
    engine: Miniature,
) -> None:
    for number in range(8):
        await frozen(engine, f"w{number}", text(number))
    walk = asyncio.create_task(engine.call(Op.VERIFY, rate_mb_s=2.0, repair=True))
    for number in range(8):
        await engine.call(Op.DELETE, window_name=f"w{number}")
        await frozen(engine, f"x{number}", text(100 + number))
    report = await walk
    assert report["bad_copies"] == 0
    assert (await engine.catalog.run(lambda catalog: catalog.totals())).tiers[TierName.DISK].chunks == 24


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
async def test_an_impossible_rate_is_refused(engine: Miniature, rate: float) -> None:
    with pytest.raises(CWMError, match="CWM-1003"):
        await engine.call(Op.VERIFY, rate_mb_s=rate)


async def test_a_tier_that_does_not_answer_is_asked_once_a_batch(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    await frozen(engine, "w", text(1, chunks=3))
    forget_memory(engine)
    asked = []

    def read(chunk: ChunkId, into: memoryview) -> None:
        asked.append(chunk)
        raise CWMError(Code.BACKEND, "the disk does not answer; look at it")

    monkeypatch.setattr(engine.disk, "read", read)
    report = await engine.call(Op.VERIFY)
    assert (report["copies"], report["unread"], len(asked)) == (3, 3, 1)
