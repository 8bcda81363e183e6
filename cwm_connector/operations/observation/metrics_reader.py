"""Return the engine's metrics. What is no counter is read when somebody asks: totals, tiers and speeds. Control thread.

A tier that does not answer costs a scrape a second at most.
"""

import asyncio
import math
from typing import Final

from cwm_connector.catalog.base import CatalogTotals
from cwm_connector.core.folders import free_bytes
from cwm_connector.core.types import TierName
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.health import HealthReader
from cwm_connector.protocol.stats import Metrics

TIER_WAITS_S: Final = 1.0


class MetricsReader:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, health: HealthReader) -> None:
        self._engine = engine
        self._health = health

    async def read(self) -> Metrics:
        """Return all samples as they are now."""
        engine, metrics = self._engine, self._engine.metrics
        totals = await engine.catalog.run(lambda catalog: catalog.totals())
        metrics.windows.set(totals.windows)
        metrics.chunks.set(totals.chunks)
        metrics.chunk_bytes.set(totals.stored_bytes)
        seconds = engine.scheduler.prefill_speed.seconds_for(1000)
        metrics.prefill_rate.set(1000 / seconds if seconds else math.nan)
        await asyncio.gather(*(self._read_tier(name, totals) for name in engine.durable_tiers))
        metrics.tiers.disk_free.set(await asyncio.to_thread(self._free_bytes))
        return Metrics(metrics=metrics.samples())

    async def _read_tier(self, name: TierName, totals: CatalogTotals) -> None:
        tiers = self._engine.metrics.tiers
        state = await self._health.tier_health(name, TIER_WAITS_S)
        is_up = state.status != "unhealthy"
        tiers.up.labels(name.value).set(is_up)
        if name in totals.tiers:
            tiers.stored.labels(name.value).set(totals.tiers[name].stored_bytes)
        if is_up:  # else the last known limit stays
            limit = await asyncio.to_thread(self._engine.durable_tiers[name].limit_bytes)
            tiers.limit.labels(name.value).set(limit or math.nan)

    def _free_bytes(self) -> float:
        try:
            return free_bytes(self._engine.settings.chunks_path)
        except OSError:
            return math.nan
