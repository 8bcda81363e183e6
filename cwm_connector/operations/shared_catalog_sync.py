"""What other engines do to a shared catalog, carried over into this one: once a second, and after each contact.

A window that somebody else deleted is loaded from no more, and this engine's own copies of chunks that nobody refers to
any more go. Control thread only, but for `note_gone`.
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
    """For an engine with a shared catalog."""

    def __init__(self) -> None:
        self._gone: queue.SimpleQueue[Gone] = queue.SimpleQueue()
        self._fault: str | None = None

    def note_gone(self, gone: Gone) -> None:
        """The catalog's `on_gone`; any thread, also before there is an engine."""
        self._gone.put(gone)

    async def run(self, engine: EngineContext, tiering: Tiering) -> None:
        """Until it is cancelled. An outage of Redis is logged when it begins and when it ends."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.follow(engine, tiering)
                self._say(None)
            except CWMError as problem:
                self._say(str(problem))
            except Exception:
                logger.exception("following the shared catalog failed; it is tried again")

    async def follow(self, engine: EngineContext, tiering: Tiering) -> None:
        """Catches up, and acts on what others have deleted. Raises what the catalog's `catch_up` raises."""

        def catch_up(catalog: object) -> None:
            assert isinstance(catalog, RedisCatalog)
            catalog.catch_up()

        try:
            await engine.catalog.run(catch_up)
        finally:
            for _ in range(self._gone.qsize()):
                await self._let_go(self._gone.get(), engine, tiering)

    async def _let_go(self, gone: Gone, engine: EngineContext, tiering: Tiering) -> None:
        if gone.window is not None:
            engine.thaw_bindings.unbind(gone.window)
        if not gone.orphans:
            return
        keys = [row.key for row in gone.orphans]
        async with engine.chunk_lock:
            stored = await engine.catalog.run(lambda catalog: catalog.stored(keys))
            orphans = [row for row in gone.orphans if row.key not in stored]  # stored anew meanwhile, it is in use
            tiering.forget([row.key for row in orphans])
            for tier in engine.durable_tiers:
                engine.locations.record(tier, (), [row.key for row in orphans])
            await engine.drop(claimed(orphans), (TierName.CPU, TierName.DISK))

    def _say(self, fault: str | None) -> None:
        if fault is not None and self._fault is None:
            logger.warning("the shared catalog can't be followed: %s", fault)
        if fault is None and self._fault is not None:
            logger.info("the shared catalog is followed again")
        self._fault = fault
