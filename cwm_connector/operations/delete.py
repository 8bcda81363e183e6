"""Deletes windows, and collects chunks that no window refers to.

The catalog's transaction comes first and the bytes go afterwards, so the tiers can hold more than the catalog knows and
never less. Leftovers of a kill are swept by the next start, or by a collection (`cwm gc`). Control thread.
"""

import asyncio
from collections.abc import Mapping

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.control.async_helpers import finish_even_if_cancelled
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_window_name
from cwm_connector.core.types import ChunkKey
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.start.recovery import Swept, sweep
from cwm_connector.operations.tiering import Tiering
from cwm_connector.protocol.calls import DeleteArgs
from cwm_connector.protocol.results import Collected, Deleted
from cwm_connector.tiers.base import DurableTier


class Deleter:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering

    async def delete(self, args: DeleteArgs) -> Deleted:
        """Delete a window's row, then remove the chunks that no other window refers to from every tier."""
        name = check_window_name(args.window_name)
        async with self._engine.chunk_lock:
            return await finish_even_if_cancelled(self._delete(name))

    async def collect(self) -> Collected:
        """Remove chunk rows that no window refers to, and what the tiers hold without a row.

        Raises: `Code.BACKEND` while the outcome of a freeze is unknown. A tier that can't be asked only adds a warning.
        """
        async with self._engine.chunk_lock:
            return await finish_even_if_cancelled(self._collect())

    async def _delete(self, name: str) -> Deleted:
        deleted = await self._engine.catalog.run(lambda catalog: catalog.delete_window(name))
        self._engine.thaw_bindings.unbind(name)
        return Deleted(
            window_name=name,
            blocks_deleted=len(deleted.orphans),
            blocks_shared=deleted.shared,
            space_freed_bytes=await self._tiering.remove(deleted.orphans),
        )

    async def _collect(self) -> Collected:
        engine = self._engine
        if not await engine.catalog.run(lambda catalog: catalog.is_durable()):
            raise CWMError(Code.BACKEND, "the outcome of a freeze is not known yet; run it again once Redis is back")
        unreferenced = await engine.catalog.run(lambda catalog: catalog.sweep_unreferenced())
        freed = await self._tiering.remove(unreferenced)
        rows = {row.key: row for row in await engine.catalog.run(lambda catalog: catalog.all_chunks())}
        orphans, away = 0, []
        for tier in engine.durable_tiers.values():
            try:
                swept = await asyncio.to_thread(self._sweep, tier, rows)
            except CWMError as problem:
                away.append(f"{tier.name.value}: {problem}")
                continue
            orphans += swept.chunks
            freed += swept.n_bytes
        compacted = await engine.catalog.run(lambda catalog: catalog.compact())
        return Collected(
            chunks_deleted=len(unreferenced) + orphans,
            space_freed_bytes=freed,
            catalog_bytes_freed=compacted,
            warning="; ".join(away) or None,
        )

    def _sweep(self, tier: DurableTier, rows: Mapping[ChunkKey, ChunkRow]) -> Swept:
        return sweep(tier, tier.inventory(), rows, self._engine.claims)
