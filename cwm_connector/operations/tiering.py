"""Moves chunks between the durable tiers: cold ones leave the disk, used ones come back, bad ones are replaced.

    demote   write to the first slower tier that takes it, read back and check, record, drop from disk
    when     a freeze needs room (CWM_DISK_CACHE_GB) and the trash is empty, the disk tier is nearly full,
             or no freeze or thaw has used the chunk for CWM_COLD_AFTER_HOURS
    which    the coldest first, in the order of the policy (CWM_TIER_POLICY)

A chunk leaves a tier only after another tier is shown to have it. Without a slower tier that keeps its data, nothing
leaves the disk. CPU memory has its own limit (tiers/cpu.py). Control thread. Moves hold `chunk_lock` for one batch at a
time.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.catalog.trash.base import TrashedWindow
from cwm_connector.control.async_helpers import run_periodically
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import free_bytes
from cwm_connector.core.types import ChunkKey, TierName, now_micros
from cwm_connector.operations.chunk_uses import ChunkUses
from cwm_connector.operations.context import EngineContext, claimed

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
REVIEW_S: Final = 60.0
"""Between two reviews of the disk's limit and the chunks' ages."""
BATCH: Final = 8
"""Chunks that are moved before other operations may take `chunk_lock`."""
HIGH_WATER: Final = 0.9
LOW_WATER: Final = 0.8
"""Shares of the disk's limit. Above the first, chunks are moved until the second is reached."""
_MARGIN_BYTES: Final = 1 << 16
"""For the catalog and the file system, which grow with the chunks."""


class Tiering:
    """One for each engine. Call `load_from_catalog` first. `run` is a task of its own, operations call the rest."""

    def __init__(self, engine: EngineContext) -> None:
        self._engine = engine
        self._uses = ChunkUses(engine)
        self._lost: list[ChunkKey] = []
        self._reviewed_at = 0.0
        self._below_disk = tuple(tier for tier in engine.durable_tiers if tier is not TierName.DISK)
        """Where chunks may go that leave the disk; fastest first."""

    def load_from_catalog(self) -> None:
        """Start to load from the catalog where each chunk lies and when it was used last."""
        self._uses.load()

    # --- called by operations -----------------------------------------------------------------------------------------

    def used(self, keys: Iterable[ChunkKey]) -> None:
        """Note that a freeze or a thaw uses these chunks now."""
        self._uses.used(keys)

    def forget(self, keys: Iterable[ChunkKey]) -> None:
        """Drop what is known of deleted chunks."""
        self._uses.forget(keys)

    async def apply_observations(self) -> None:
        """Record the uses and bad copies that loads have shown since the last call. The caller holds `chunk_lock`."""
        self._uses.seen(self._engine.locations.take_uses())
        for key, tier in self._engine.locations.take_bad():
            logger.warning("a chunk in the %s tier is missing or corrupt; it no longer counts as stored", tier.value)
            await self._record(tier, went=[key])
            self._lost.append(key)

    async def make_room(self, needed: int, protected: Collection[ChunkKey]) -> None:
        """Make room for `needed` more bytes on the disk and move none of `protected`. The caller holds `chunk_lock`.

        What is in the trash goes first, the oldest first, also if the limit leaves room and the file system does not.
        Raises: `Code.QUOTA` if the limit can't be kept. Nothing goes if the sizes alone show that.
        """
        limit = self._engine.settings.disk_cache_bytes
        over = await self._disk_bytes() + needed - limit
        wanted = max(over, await self._lacking(needed))
        if wanted > 0 and needed <= limit:
            over -= await self._empty_trash(wanted, protected)
        if over <= 0:
            return
        victims = await self._coldest(over, protected) if needed <= limit and self._below_disk else []
        if victims:
            over -= await self._demote(victims)
        if over > 0:
            used = await self._disk_bytes()
            below = " and ".join(tier.value for tier in self._below_disk)
            next_step = (
                f"see health_check for what {below} lacks" if victims else "delete windows or raise CWM_DISK_CACHE_GB"
            )
            raise CWMError(
                Code.QUOTA,
                f"{needed} more bytes do not fit within the disk limit ({used} of {limit} used); {next_step}",
                needed_bytes=needed,
                used_bytes=used,
                limit_bytes=limit,
            )

    async def _empty_trash(self, n_bytes: int, protected: Collection[ChunkKey]) -> int:
        """Purge the oldest windows in the trash until the disk has `n_bytes` less, and return what it has less.

        Purge none if all of them together are too small and no chunk can move to another tier.
        """
        windows = await self._engine.catalog.run(lambda catalog: catalog.trash.listed())
        if not self._below_disk and sum(window.size_bytes for window in windows) < n_bytes:
            return 0
        freed = 0
        for window in windows:
            if freed >= n_bytes:
                break
            try:
                freed += await self.purge(window, protected)
            except CWMError as problem:
                if problem.code is not Code.CORRUPT:
                    raise
                logger.warning("window %s stays in the trash: %s", window.name, problem)
                continue
            logger.info("window %s has left the trash for good, because a freeze needs its room", window.name)
        return freed

    async def purge(self, window: TrashedWindow, protected: Collection[ChunkKey] = ()) -> int:
        """Delete a window in the trash for good and return the bytes that the disk has less.

        The caller holds `chunk_lock`. The rows of `protected` stay. A window that has left the trash frees nothing.
        """
        try:
            deleted = await self._engine.catalog.run(
                lambda catalog: catalog.trash.purge(window.name, window.trashed_at, protected)
            )
        except CWMError as problem:
            if problem.code is Code.WINDOW_NOT_FOUND:
                return 0
            raise
        await self.remove(deleted.orphans)
        return sum(row.size_bytes for row in deleted.orphans if TierName.DISK in row.tiers)

    async def remove(self, orphans: Sequence[ChunkRow]) -> int:
        """Remove chunks that have no row any more from every tier and return the bytes that became free."""
        if not orphans:
            return 0
        keys = [row.key for row in orphans]
        self.forget(keys)
        for tier in self._engine.durable_tiers:
            self._engine.locations.record(tier, (), keys)
        dropped = await self._engine.drop(claimed(orphans), (TierName.CPU, *self._engine.durable_tiers))
        return sum(outcome.size_bytes for outcome in dropped.outcomes.values())

    async def demote(self, keys: Sequence[ChunkKey]) -> int:
        """Move chunks from disk to a slower tier and return the bytes that became free on the disk."""
        freed = 0
        for batch in _batches(keys):
            async with self._engine.chunk_lock:
                freed += await self._demote(await self._rows(batch, TierName.DISK))
        return freed

    async def restore(self, keys: Sequence[ChunkKey]) -> None:
        """Bring chunks that a slower tier has, or that the disk lost, back to the disk unless it is nearly full."""
        ceiling = HIGH_WATER * self._engine.settings.disk_cache_bytes
        for batch in _batches(keys):
            async with self._engine.chunk_lock:
                rows = [row for row in await self._rows(batch) if TierName.DISK not in row.tiers]
                room = ceiling - await self._disk_bytes()
                if not rows or sum(row.size_bytes for row in rows) > room:
                    return
                await self._bring(rows, TierName.DISK)

    async def replace(self, row: ChunkRow, tier: TierName) -> bool:
        """Replace a durable tier's bad copy from a good one and return True if the tier has a good copy again.

        The bad copy no longer counts as stored, even if there is no good one.
        """
        async with self._engine.chunk_lock:
            await self._record(tier, went=[row.key])
            return bool(await self._bring([row], tier))

    # --- the task -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Call `tick` once a second until cancelled. Failures are logged and tried again."""
        await run_periodically(self.tick, TICK_S, "tiering")

    async def tick(self) -> None:
        """Apply what loads have shown, replace lost copies, and review limits and ages once a minute."""
        async with self._engine.chunk_lock:
            await self.apply_observations()
        lost, self._lost = self._lost, []
        await self.restore(lost)
        now = asyncio.get_running_loop().time()
        if now - self._reviewed_at >= REVIEW_S:
            self._reviewed_at = now
            await self.review()

    async def review(self) -> None:
        """Move old chunks off the disk, and the coldest ones if it is nearly full."""
        if not self._below_disk:
            return
        limit = self._engine.settings.disk_cache_bytes
        await self._uses.loaded()
        await self.demote(self._aged())
        used = await self._disk_bytes()
        if used > HIGH_WATER * limit:
            rows = await self._coldest(int(used - LOW_WATER * limit), ())
            await self.demote([row.key for row in rows])

    # --- inside -------------------------------------------------------------------------------------------------------

    def _on_disk_coldest_first(self) -> Iterator[ChunkKey]:
        holds = self._engine.locations.holds
        return (key for key in self._uses.coldest() if holds(TierName.DISK, key))

    def _aged(self) -> list[ChunkKey]:
        before = now_micros() - self._engine.settings.cold_after_hours * 3600 * 1_000_000
        return [key for key in self._on_disk_coldest_first() if self._uses.used_at[key] < before]

    async def _coldest(self, n_bytes: int, protected: Collection[ChunkKey]) -> list[ChunkRow]:
        """Return the coldest chunks on disk that together take `n_bytes`, or none if all of them take less."""
        await self._uses.loaded()
        chosen: list[ChunkRow] = []
        candidates = [key for key in self._on_disk_coldest_first() if key not in protected]
        for batch in _batches(candidates, 64):
            for row in await self._rows(batch, TierName.DISK):
                chosen.append(row)
                n_bytes -= row.size_bytes
                if n_bytes <= 0:
                    return chosen
        return []

    async def _demote(self, rows: Sequence[ChunkRow]) -> int:
        """Move chunks from disk to a slower tier. The order keeps every recorded copy in place at every instant."""
        moved: list[ChunkRow] = []
        for tier in self._below_disk:
            moved += await self._bring([row for row in rows if row not in moved], tier)
        await self._record(TierName.DISK, went=[row.key for row in moved])
        await self._engine.drop(claimed(moved), (TierName.DISK,))
        return sum(row.size_bytes for row in moved)

    async def _bring(self, rows: Sequence[ChunkRow], target: TierName) -> list[ChunkRow]:
        """Copy, check and record chunks, and return those that `target` now has whole."""
        if not rows:
            return []
        try:
            await asyncio.to_thread(self._engine.durable_tiers[target].require_lasting)
            outcomes = (await self._engine.copy(rows, target)).outcomes
        except CWMError as problem:
            logger.warning("%d chunks stay out of the %s tier: %s", len(rows), target.value, problem)
            return []
        good = [row for row in rows if outcomes[row.key].size_bytes == row.size_bytes]
        failure = next((outcomes[row.key].failure for row in rows if outcomes[row.key].failure), None)
        if failure is not None:
            logger.warning("%d chunks stay out of the %s tier: %s", len(rows) - len(good), target.value, failure[1])
        await self._record(target, came=[row.key for row in good])
        return good

    async def _record(self, tier: TierName, came: Sequence[ChunkKey] = (), went: Sequence[ChunkKey] = ()) -> None:
        await self._engine.catalog.run(lambda catalog: catalog.place(tier, came, went))
        self._engine.locations.record(tier, came, went)

    async def _rows(self, keys: Sequence[ChunkKey], tier: TierName | None = None) -> list[ChunkRow]:
        """Return those of `keys` that are stored (in `tier`), in the order given."""
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        return [row for key in keys if (row := stored.get(key)) and (tier is None or tier in row.tiers)]

    async def _lacking(self, needed: int) -> int:
        """Return the bytes that the disk tier's file system lacks, or 0 if it can't be asked."""
        try:
            return needed + _MARGIN_BYTES - await asyncio.to_thread(free_bytes, self._engine.settings.chunks_path)
        except OSError:
            return 0

    async def _disk_bytes(self) -> int:
        totals = await self._engine.catalog.run(lambda catalog: catalog.totals())
        return totals.tiers[TierName.DISK].stored_bytes


def _batches(keys: Sequence[ChunkKey], size: int = BATCH) -> Iterator[Sequence[ChunkKey]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
