"""When each chunk was last used by a freeze or a thaw, for engines that have a tier below the disk.

The uses of before the start are read from the catalog page by page, with a bounded share of the catalog thread. Until
they are there, uses are only collected. An engine without such a tier moves nothing and keeps nothing. Control thread.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.core.types import ChunkKey, Micros, TierName, now_micros
from cwm_connector.operations.context import EngineContext
from cwm_connector.tiers.policies import TierPolicy, new_policy

PAGE: Final = 256
SHARE: Final = 0.2
"""The part of the catalog thread's time that reading the uses takes."""


class ChunkUses:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext) -> None:
        self._engine = engine
        self._policy: TierPolicy[ChunkKey] = new_policy(engine.settings.tier_policy)
        self.used_at: dict[ChunkKey, Micros] = {}
        self._early: dict[ChunkKey, Micros] = {}
        """Uses since the start, until those of before are there."""
        self._gone: set[ChunkKey] = set()
        """Chunks that were deleted until then."""
        self._loading: asyncio.Task[None] | None = None
        self._needed = any(tier is not TierName.DISK for tier in engine.durable_tiers)

    def load(self) -> None:
        """Start to read the uses of before the start."""
        if self._needed:
            self._loading = asyncio.create_task(self._load())

    async def loaded(self) -> None:
        """Wait until all uses are known. Raises: what the catalog raises."""
        if self._loading is not None:
            await asyncio.shield(self._loading)

    def used(self, keys: Iterable[ChunkKey]) -> None:
        """Note that a freeze or a thaw uses these chunks now."""
        if self._needed:
            now = now_micros()
            for key in keys:
                self._note(key, now)

    def seen(self, keys: Iterable[ChunkKey]) -> None:
        """Note that loads have used these chunks, as far as they are still there."""
        self.used(key for key in keys if self._is_loading or key in self.used_at)

    def forget(self, keys: Iterable[ChunkKey]) -> None:
        """Drop what is known of deleted chunks."""
        for key in keys:
            if self._is_loading:
                self._gone.add(key)
                self._early.pop(key, None)
            self._policy.forget(key)
            self.used_at.pop(key, None)

    def coldest(self) -> Iterator[ChunkKey]:
        """Yield all chunks in the order in which the policy moves them."""
        return iter(self._policy.coldest())

    @property
    def _is_loading(self) -> bool:
        return self._loading is not None and not self._loading.done()

    def _note(self, key: ChunkKey, at: Micros) -> None:
        if self._is_loading:
            self._gone.discard(key)
            self._early[key] = at
        else:
            self._policy.used(key)
            self.used_at[key] = at

    async def _page(self, last: ChunkKey | None) -> Sequence[tuple[ChunkRow, Micros]]:
        return await self._engine.catalog.run(lambda catalog: catalog.uses_after(last, PAGE))

    async def _load(self) -> None:
        uses: list[tuple[Micros, ChunkKey]] = []
        last = None
        while True:
            began = time.monotonic()
            page = await self._page(last)
            if not page:
                break
            last = page[-1][0].key
            self._engine.locations.load_from_catalog(row for row, _ in page)
            uses += ((at, row.key) for row, at in page)
            await asyncio.sleep((time.monotonic() - began) * (1 / SHARE - 1))
        for at, key in sorted(uses):
            if key not in self._gone:
                self._policy.used(key)
                self.used_at[key] = at
        for key, at in self._early.items():
            self._policy.used(key)
            self.used_at[key] = at
        self._early, self._gone = {}, set()
