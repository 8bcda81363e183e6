"""Reports the health of the engine's parts, with what to do about each fault.

Nothing here waits long. A part that does not answer in time is reported as not answering. Control thread.
"""

import asyncio
import time
from pathlib import Path
from typing import Final

from cwm_connector.control.async_helpers import wait_done
from cwm_connector.core.errors import CWMError
from cwm_connector.core.folders import folder_state, free_space, is_nearly_full
from cwm_connector.core.types import TierName
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.start.home_check import HomeCheck
from cwm_connector.protocol.calls import HealthArgs
from cwm_connector.protocol.stats import Component, Health, HealthState
from cwm_connector.version import __version__

ANSWER_S: Final = 4.0
"""For a tier whose own time-outs may be longer. The client gives up after 5 s."""


class HealthReader:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, home_check: HomeCheck) -> None:
        self._engine = engine
        self._home_check = home_check
        self._started = time.monotonic()

    async def health(self, args: HealthArgs) -> Health:
        """Return the health of one part or of all."""
        components = await asyncio.gather(
            self._engine_health(),
            self._catalog_health(),
            self._cpu_health(),
            self._disk_health(),
            *(self.tier_health(tier) for tier in TierName.durable() if tier is not TierName.DISK),
        )
        chosen = [each for each in components if args.component in (None, each.name)]
        healthy = all(each.status == "healthy" for each in chosen)
        return Health(
            status="healthy" if healthy else "degraded",
            uptime_seconds=round(time.monotonic() - self._started, 3),
            version=__version__,
            components=chosen,
        )

    async def _engine_health(self) -> Component:
        begun = time.perf_counter()
        answered = await wait_done(self._engine.step_queue.call(lambda: None), 1.0)
        message = "stepping" if answered else "busy: it took no step within a second"
        return _component("engine", "healthy", message, begun if answered else None)

    async def _catalog_health(self) -> Component:
        begun = time.perf_counter()
        try:
            totals, trash, state = await self._engine.catalog.run(
                lambda catalog: (catalog.totals(), catalog.trash.totals(), catalog.state())
            )
        except CWMError as problem:
            return _component("catalog", "unhealthy", problem.message, None)
        known = f"{totals.windows} windows, {totals.chunks} chunks"
        if trash.windows:
            known += f", {trash.windows} more in the trash"
        if state is not None:
            return _component("catalog", "degraded", f"{known} as last known; {state}", begun)
        if self._home_check.fault is not None:
            return _component("catalog", "degraded", f"{known}; {self._home_check.fault}", begun)
        if self._home_check.is_running:
            known += "; its file and the tiers are still being checked"
        return _component("catalog", "healthy", known, begun)

    async def _cpu_health(self) -> Component:
        return _component("cpu", "healthy", f"{len(self._engine.locations.in_memory())} chunks in memory", None)

    async def _disk_health(self) -> Component:
        return await asyncio.to_thread(_folder_health, self._engine.settings.chunks_path)

    async def tier_health(self, name: TierName, limit_s: float = ANSWER_S) -> Component:
        """Return the health of a durable tier. One that takes longer than the limit is unhealthy."""
        if name is TierName.DISK:
            return await self._disk_health()
        tier = self._engine.durable_tiers.get(name)
        if tier is None:
            return _component(name.value, "healthy", "not configured", None)
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(limit_s):
                message = await asyncio.to_thread(tier.condition)
        except TimeoutError:
            return _component(name.value, "unhealthy", f"no answer within {limit_s:g} s; check the server", None)
        except CWMError as problem:
            return _component(name.value, "unhealthy", problem.message, None)
        try:
            await asyncio.to_thread(tier.require_lasting)
        except CWMError as problem:
            return _component(name.value, "degraded", problem.message, begun)
        return _component(name.value, "healthy", message, begun)


def _folder_health(folder: Path) -> Component:
    state = folder_state(folder)
    if state.fault is not None:
        return _component("disk", "unhealthy", state.fault, None)
    status: HealthState = "degraded" if is_nearly_full(state.free_bytes) else "healthy"
    return _component("disk", status, free_space(folder, state.free_bytes), None)


def _component(name: str, status: HealthState, message: str, begun: float | None) -> Component:
    latency = None if begun is None else round((time.perf_counter() - begun) * 1000, 3)
    return Component(name=name, status=status, message=message, latency_ms=latency)
