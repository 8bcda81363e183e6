"""Carries over into this engine what other engines do to the shared catalog, once a second.

After another engine's delete, this engine no longer loads from that window, and drops its own copies of chunks that no
window refers to. Control thread, except for `note_gone`.
"""

import asyncio
import logging
import queue
from typing import Final

from cwm_connector.catalog.shared.catalog import RedisCatalog
from cwm_connector.catalog.shared.replica import Gone
from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import TierName
from cwm_connector.operations.context import EngineContext, claimed
from cwm_connector.operations.tiering import Tiering

logger = logging.getLogger(__name__)

PERIOD_S: Final = 1.0


class SharedCatalogSync:
    """One for each engine. An engine with a catalog of its own never runs it."""

    def __init__(self) -> None:
        self._gone: queue.SimpleQueue[Gone] = queue.SimpleQueue()
        self._fault: str | None = None

    def note_gone(self, gone: Gone) -> None:
        """Take down what another engine deleted. The catalog calls it, from its own thread and before `run`."""
        self._gone.put(gone)

    async def run(self, engine: EngineContext, tiering: Tiering) -> None:
        """Follow the catalog until cancelled. An outage of Redis is logged when it begins and when it ends."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.follow(engine, tiering)
                self._log_change(None)
            except CWMError as problem:
                self._log_change(str(problem))
            except Exception:
                logger.exception("following the shared catalog failed; trying again")

    async def follow(self, engine: EngineContext, tiering: Tiering) -> None:
        """Catch up with the catalog and act on what others have deleted. Raises: what `catch_up` raises."""

        def catch_up(catalog: object) -> None:
            assert isinstance(catalog, RedisCatalog)
            catalog.catch_up()

        try:
            await engine.catalog.run(catch_up)
        finally:
            for _ in range(self._gone.qsize()):
                await self._drop_gone(self._gone.get(), engine, tiering)

    async def _drop_gone(self, gone: Gone, engine: EngineContext, tiering: Tiering) -> None:
        if gone.window is not None:
            engine.thaw_bindings.unbind(gone.window)
        if not gone.orphans:
            return
        keys = [row.key for row in gone.orphans]
        async with engine.chunk_lock:
            stored = await engine.catalog.run(lambda catalog: catalog.stored(keys))
            orphans = [row for row in gone.orphans if row.key not in stored]  # one that was stored again is in use
            tiering.forget([row.key for row in orphans])
            for tier in engine.durable_tiers:
                engine.locations.record(tier, (), [row.key for row in orphans])
            own = [tier for tier in engine.durable_tiers if tier not in engine.shared_tiers]
            await engine.drop(claimed(orphans), (TierName.CPU, *own))

    def _log_change(self, fault: str | None) -> None:
        if fault is not None and self._fault is None:
            logger.warning("this engine can't follow the shared catalog: %s", fault)
        if fault is None and self._fault is not None:
            logger.info("this engine follows the shared catalog again")
        self._fault = fault
