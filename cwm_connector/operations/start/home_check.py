"""Checks the home after a start: the structure of the catalog's file, then the tiers against the catalog's rows.

A start waits for it for `START_WAITS_S`. What takes longer goes on while the engine serves, with a bounded share of the
catalog thread and on a thread of low priority. Until a tier has been compared, a freeze looks at each copy there that
it is going to refer to (`require_there`), so a window never refers to bytes that a crash took away. Bytes without a row
are removed only after the structure was found sound. If it is not, the catalog refuses writes and the health says so.
Control thread.
"""

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from cwm_connector.catalog.base import ChunkRow, StructureCheck
from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.start.recovery import (
    Changed,
    Compared,
    Recovered,
    Slow,
    Step,
    Steps,
    recovery,
    stored_bytes,
)

logger = logging.getLogger(__name__)
START_WAITS_S: Final = 2.0
SHARE: Final = 0.2
"""The part of the catalog thread's time that the comparison takes while the engine serves."""
_LOWEST_PRIORITY: Final = 19


class HomeCheck:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext) -> None:
        self._engine = engine
        self._serving = False
        self._task: asyncio.Task[Recovered] | None = None
        self.fault: str | None = None
        """The fault that ended the check early while the engine served."""

    async def start(self) -> None:
        """Start the check, and wait for it for `START_WAITS_S`. Raises: what it has raised until then."""
        self._engine.uncompared.update(self._engine.durable_tiers)
        self._task = asyncio.create_task(self._run())
        await asyncio.wait({self._task}, timeout=START_WAITS_S)
        self._serving = True
        if self._task.done():
            self._log(self._task)
        else:
            logger.info("the check of home %s goes on while the engine serves", self._engine.settings.home)
            self._task.add_done_callback(self._end)

    @property
    def is_running(self) -> bool:
        """Return whether the home is still being checked."""
        return self._task is not None and not self._task.done()

    async def wait(self) -> None:
        """Wait for the end of the check, however it ends."""
        if self._task is not None:
            await asyncio.wait({self._task})

    # --- inside ---

    def _log(self, task: "asyncio.Task[Recovered]") -> None:
        found = task.result()
        logger.info(
            "home %s: swept %d leftovers and %d orphans; %d chunks are damaged",
            self._engine.settings.home,
            found.leftovers,
            found.orphans,
            found.damaged,
        )

    def _end(self, task: "asyncio.Task[Recovered]") -> None:
        if task.cancelled():
            return
        try:
            self._log(task)
        except CWMError as problem:
            self.fault = f"the check of the home ended early: {problem}"
            logger.error("%s", self.fault)
        except Exception:
            self.fault = "the check of the home failed; see the engine's log and restart the engine"
            logger.exception("the check of the home failed")

    async def _run(self) -> Recovered:
        await self._check_structure()
        engine = self._engine
        tiers = tuple(engine.durable_tiers.values())
        steps = await engine.catalog.run(lambda catalog: recovery(catalog, tiers, engine.claims, engine.world_size))
        proceed: Callable[[], Step] = partial(next, steps)
        while True:
            began = time.monotonic()
            async with engine.chunk_lock:
                step = await self._advance(proceed)
                if isinstance(step, Recovered):
                    return step
                self._apply(step)
                proceed = partial(next, steps)
                if isinstance(step, Slow) and step.locked:
                    proceed = await _carry_out(step, steps)
            if isinstance(step, Slow) and not step.locked:
                proceed = await _carry_out(step, steps)
            if self._serving:
                await asyncio.sleep((time.monotonic() - began) * (1 / SHARE - 1))

    async def _advance(self, proceed: Callable[[], Step]) -> Step | Recovered:
        def advance() -> Step | Recovered:
            try:
                return proceed()
            except StopIteration as end:
                counts: Recovered = end.value
                return counts

        return await self._engine.catalog.run(lambda _: advance())

    def _apply(self, step: Step) -> None:
        if isinstance(step, Changed):
            self._engine.locations.record(step.tier, step.came, step.went)
        elif isinstance(step, Compared):
            self._engine.uncompared.discard(step.tier)

    async def _check_structure(self) -> None:
        """Check what the start did not. Raises: `Code.CORRUPT` for damage, after which the catalog refuses writes."""
        check = await self._engine.catalog.run(lambda catalog: catalog.structure_check())
        if check is None:
            return
        fault = await _with_low_priority(check)
        if fault is not None:
            await self._engine.catalog.run(lambda catalog: catalog.refuse_writes(fault))


async def require_there(engine: EngineContext, rows: Sequence[ChunkRow]) -> bool:
    """Record which of these copies are gone from tiers that were not compared yet. Return whether some are.

    The caller holds `chunk_lock`. A tier that can't be asked stays as it is recorded.
    """
    return any([await _is_less_than_recorded(engine, name, rows) for name in tuple(engine.uncompared)])


async def _is_less_than_recorded(engine: EngineContext, name: TierName, rows: Sequence[ChunkRow]) -> bool:
    tier, ranks = engine.durable_tiers[name], range(engine.world_size)

    def gone() -> list[ChunkKey]:
        recorded = [row for row in rows if name in row.tiers]
        return [row.key for row in recorded if stored_bytes(tier, row.key, ranks) != row.size_bytes]

    try:
        went = await asyncio.to_thread(gone)
    except CWMError as problem:
        logger.warning("the %s tier is taken as it was: %s", name.value, problem)
        return False
    await engine.catalog.run(lambda catalog: catalog.place(name, (), went))
    engine.locations.record(name, (), went)
    return bool(went)


async def _carry_out(step: Slow, steps: Steps) -> Callable[[], Step]:
    """Do the work of a step on another thread, and return what continues the steps with its result or its error."""
    try:
        return partial(steps.send, await asyncio.to_thread(step.work))
    except CWMError as problem:
        return partial(steps.throw, problem)


async def _with_low_priority(check: StructureCheck) -> str | None:
    """Run the check on a thread that gets what processor time others leave. Cancelling this stops it."""
    answer: Future[str | None] = Future()
    answer.set_running_or_notify_cancel()

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        try:
            answer.set_result(check.run())
        except sqlite3.DatabaseError as problem:
            answer.set_result(str(problem))

    threading.Thread(target=run, name="cwm-catalog-check", daemon=True).start()
    try:
        return await asyncio.wrap_future(answer)
    except asyncio.CancelledError:
        check.stop()
        raise
