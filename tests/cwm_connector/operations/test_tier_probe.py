"""tier_probe.py: a tier's speed is known before a request depends on it."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from cwm_connector.core.identity import Passport
from cwm_connector.core.types import TierName
from cwm_connector.operations import tier_probe
from cwm_connector.operations.tier_probe import TierProbe
from cwm_connector.protocol.calls import Op
from cwm_connector.step.read_speed import OUTDATED_S
from cwm_connector.tiers.base import ChunkId
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import RedisServer
from tests.support.stores import demote, flip, frozen, text


async def measured(engine: Miniature) -> set[TierName]:
    """Measure, and return the tiers whose speed is known then."""
    await engine.operations.tier_probe.measure()
    return {tier for tier in TierName if engine.scheduler.read_speed.knows(tier)}


async def test_a_restarted_engine_measures_every_tier_that_has_chunks(tmp_path: Path, server: RedisServer) -> None:
    engine = await Miniature.started(tmp_path, redis_url=server.url)
    assert await measured(engine) == set()
    await frozen(engine, "near", text(1))
    await frozen(engine, "far", text(2))
    await demote(engine, "far")
    engine.close()
    restarted = await Miniature.started(tmp_path, redis_url=server.url)
    assert await measured(restarted) == {TierName.DISK, TierName.REDIS}
    restarted.close()


async def test_the_first_freeze_is_measured_though_its_chunks_are_in_memory(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    await frozen(engine, "w", text(1))
    assert await measured(engine) == {TierName.DISK}
    thawed = await engine.call(Op.THAW, window_name="w")
    assert set(thawed["restored_by_tier"]) == {"cpu"}
    engine.close()


async def test_a_known_speed_is_measured_again_when_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await Miniature.started(tmp_path)
    await frozen(engine, "w", text(1))
    speed = engine.scheduler.read_speed
    speed.measured({TierName.DISK: 1}, 1000.0)
    await engine.operations.tier_probe.measure()
    assert speed.seconds_for(TierName.DISK, 1) == 1000.0
    speed._measured_at[TierName.DISK] -= OUTDATED_S
    await engine.operations.tier_probe.measure()
    assert speed.seconds_for(TierName.DISK, 1) == pytest.approx(500.0, rel=0.1)
    engine.close()


async def test_chunks_of_another_model_or_damaged_ones_measure_nothing(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    await frozen(engine, "w", text(1))
    engine.close()
    other = await Miniature.started(tmp_path, passport=Passport({"weights": "other", "format": "1"}))
    assert await measured(other) == set()
    other.close()
    for file in chunk_files(tmp_path):
        flip(file)
    damaged = await Miniature.started(tmp_path)
    assert await measured(damaged) == set()
    damaged.close()


async def test_an_engine_measures_at_once_when_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = []

    async def run_periodically(step: object, every_s: float, what: str, *, first_s: float | None = None) -> None:
        began.append((step, every_s, first_s))

    monkeypatch.setattr(tier_probe, "run_periodically", run_periodically)
    engine = await Miniature.started(tmp_path)
    probe = TierProbe(engine.engine)
    await probe.run()
    assert began == [(probe.measure, tier_probe.EVERY_S, 0)]
    engine.close()


async def test_a_measurement_reads_its_chunks_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await Miniature.started(tmp_path)
    await frozen(engine, "w", text(1, chunks=3))
    read, all_three = engine.disk.read, threading.Barrier(3)

    def read_together(chunk: ChunkId, into: memoryview) -> "Future[None]":
        all_three.wait(5)
        return read(chunk, into)

    monkeypatch.setattr(engine.disk, "read", read_together)
    assert await measured(engine) == {TierName.DISK}
    engine.close()
