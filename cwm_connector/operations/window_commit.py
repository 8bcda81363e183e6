"""The steps that a freeze and an import share: make room for new chunks, commit the window, clean up after a failure.

The caller holds `chunk_lock`, except for `require_free` and the two functions that only build rows. Control thread.
"""

from collections.abc import Callable, Mapping, Sequence

from cwm_connector.catalog.base import ChunkRow, NewWindow, Origin, OutcomeUnknown, Proof, WindowRow
from cwm_connector.control.async_helpers import finish_even_if_cancelled
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.names import name_taken
from cwm_connector.core.types import ChunkKey, TierName, now_micros
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.start.home_check import require_there
from cwm_connector.operations.tiering import Tiering
from cwm_connector.step.jobs import ClaimedChunk
from cwm_connector.step.save_plan import SaveOrder


class WindowCommit:
    """Keeps no state of its own: each operation may have one."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering

    async def require_free(self, name: str) -> None:
        """Raise `Code.WINDOW_EXISTS` for a taken name before any work is done. The commit checks it again.

        The name of a window that is being frozen is taken too.
        """
        self._engine.freezes.require_free(name)
        try:
            await self._engine.catalog.run(lambda catalog: catalog.window(name))
        except CWMError as problem:
            if problem.code is Code.WINDOW_NOT_FOUND:
                return
            raise
        raise name_taken(name)

    async def order_missing(self, chunks: Sequence[ChunkSpec], *, asked_for: bool = True) -> SaveOrder:
        """Return the order to store those of `chunks` that no durable tier has, once there is room for them.

        Raises: `Code.QUOTA` if there is no room.
        """
        await self._tiering.apply_observations()
        keys = [chunk.key for chunk in chunks]
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        if await require_there(self._engine, tuple(stored.values())):
            stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        missing = [chunk for chunk in chunks if chunk.key not in stored or not stored[chunk.key].tiers]
        if missing:
            needed = sum(self._engine.stored_bytes(chunk) for chunk in missing)
            await self._tiering.make_room(needed, protected=frozenset(keys))
        claim = self._engine.claims.new()
        return SaveOrder(chunks=tuple(missing), tiers=self._engine.freeze_tiers, claim=claim, asked_for=asked_for)

    def new_window(
        self,
        *,
        name: str,
        passport: Mapping[str, str],
        description: str,
        tags: Sequence[str],
        session_id: str,
        head: str,
        parent: str | None,
        token_ids: bytes,
        chunks: Sequence[ChunkSpec],
        private: bool,
        proof: Proof | None = None,
        origin: Origin | None = None,
        stored: Sequence[ChunkRow] = (),
    ) -> NewWindow:
        """Return this engine's window over `chunks`, created now. `stored`: rows of those that were written for it.

        The keys of the chunks follow from `passport`.
        """
        return NewWindow(
            name=name,
            description=description,
            tags=tags,
            model=self._engine.model,
            passport=passport,
            session_id=session_id,
            head=head,
            parent=parent,
            token_ids=token_ids,
            restorable_tokens=chunks[-1].end_block * self._engine.geometry.block_tokens,
            chunks=[chunk.key for chunk in chunks],
            stored=stored,
            created_at=now_micros(),
            private=private,
            proof=proof,
            origin=origin,
        )

    def new_rows(self, order: SaveOrder, size_bytes: Callable[[ChunkSpec], int]) -> list[ChunkRow]:
        """Return the rows of an order that was carried out. `size_bytes` gives a chunk's size over all ranks."""
        return [
            ChunkRow(
                key=chunk.key,
                tokens=chunk.blocks * self._engine.geometry.block_tokens,
                size_bytes=size_bytes(chunk),
                tiers=frozenset(order.tiers),
                claim=order.claim,
            )
            for chunk in order.chunks
        ]

    async def commit(self, new: NewWindow, order: SaveOrder) -> WindowRow:
        """Write the window and its rows in one transaction, which is carried through once it has begun.

        What was written for it is removed if it fails, unless the outcome is unknown: the window may be there then.
        """
        try:
            row = await finish_even_if_cancelled(self._engine.catalog.run(lambda catalog: catalog.commit_window(new)))
        except OutcomeUnknown:
            raise
        except CWMError:
            await finish_even_if_cancelled(self.discard(order))
            raise
        keys = [chunk.key for chunk in order.chunks]
        for tier in order.tiers:
            self._engine.locations.record(tier, keys)
        if self._engine.claims.shared and keys:
            await finish_even_if_cancelled(self._end_unneeded_claims(keys, order))
        return row

    async def discard(self, order: SaveOrder) -> None:
        """Remove what was written for `order`, except chunks that the catalog refers to. No job may still write."""
        keys = [chunk.key for chunk in order.chunks]
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        ours = [ClaimedChunk(key, order.claim) for key in keys]
        unreferenced = [chunk for chunk in ours if chunk.key not in stored or not stored[chunk.key].tiers]
        if self._engine.claims.shared:
            await self._engine.drop(ours, self._engine.shared_tiers)  # ends our claim; another's keeps the bytes
        await self._engine.drop(unreferenced, (TierName.CPU, *order.tiers))

    async def _end_unneeded_claims(self, keys: Sequence[ChunkKey], order: SaveOrder) -> None:
        """End our claim on chunks that another engine committed first. It would keep their bytes for ever."""
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        unneeded = [ClaimedChunk(key, order.claim) for key in keys if stored[key].claim != order.claim]
        if unneeded:
            await self._engine.drop(unneeded, self._engine.shared_tiers)
