"""What a freeze and an import have in common: room for what is missing, one commit, and nothing left of a failure.

Whoever calls holds the engine's turn, but for `require_free`. Control thread only.
"""

from collections.abc import Sequence

from cwm_connector.catalog.base import NewWindow, OutcomeUnknown, WindowRow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.names import name_taken
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.operations.async_helpers import finish_even_if_cancelled
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.tiering import Tiering
from cwm_connector.step.jobs import ClaimedChunk
from cwm_connector.step.scheduler import SaveOrder


class WindowCommit:
    """One for each engine will do; it keeps nothing."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering

    async def require_free(self, name: str) -> None:
        """Refuses a taken name before any work is done; the commit refuses it again."""
        try:
            await self._engine.catalog.run(lambda catalog: catalog.window(name))
        except CWMError as problem:
            if problem.code is Code.WINDOW_NOT_FOUND:
                return
            raise
        raise name_taken(name)

    async def missing(self, chunks: Sequence[ChunkSpec]) -> list[ChunkSpec]:
        """The chunks that have to be stored, for which there is room. Raises: CWM-4003 if there is none."""
        await self._tiering.apply_observations()
        keys = [chunk.key for chunk in chunks]
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        missing = [chunk for chunk in chunks if chunk.key not in stored or not stored[chunk.key].tiers]
        if missing:
            needed = sum(self._engine.stored_bytes(chunk.blocks) for chunk in missing)
            await self._tiering.make_room(needed, protected=frozenset(keys))
        return missing

    async def commit(self, new: NewWindow, order: SaveOrder) -> WindowRow:
        """The one transaction; once it has begun it is carried through. What was written for it goes if it fails."""
        try:
            row = await finish_even_if_cancelled(self._engine.catalog.run(lambda catalog: catalog.commit_window(new)))
        except OutcomeUnknown:
            raise  # the window may be there: what it refers to has to stay
        except CWMError:
            await finish_even_if_cancelled(self.discard(order))
            raise
        keys = [chunk.key for chunk in order.chunks]
        for tier in order.tiers:
            self._engine.locations.record(tier, keys)
        if self._engine.claims.shared and keys:
            await finish_even_if_cancelled(self._end_spare_claims(keys, order))
        return row

    async def discard(self, order: SaveOrder) -> None:
        """Removes what was written, once nobody writes any more, unless the catalog refers to it after all."""
        keys = [chunk.key for chunk in order.chunks]
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        ours = [ClaimedChunk(key, order.claim) for key in keys]
        unreferenced = [chunk for chunk in ours if chunk.key not in stored or not stored[chunk.key].tiers]
        if self._engine.claims.shared:
            await self._engine.drop(ours, (TierName.REDIS,))  # ends our claim; another's keeps the bytes
        await self._engine.drop(unreferenced, (TierName.CPU, *order.tiers))

    async def _end_spare_claims(self, keys: Sequence[ChunkKey], order: SaveOrder) -> None:
        """Chunks that another engine committed first stay under its claim; ours would keep them for ever."""
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        spare = [ClaimedChunk(key, order.claim) for key in keys if stored[key].claim != order.claim]
        if spare:
            await self._engine.drop(spare, (TierName.REDIS,))
