"""`cwm verify`: reads and checks every stored copy at a limited rate, and continues where the last run stopped.

Chunks are checked in the order of their keys. The last key is noted in the catalog after each batch, so that a run
survives a cancel, a kill and a restart. With `repair`, a bad copy is replaced from a good one in another tier, or
dropped if there is none. A chunk without any good copy is reported with the windows that need it. The next freeze of
the same tokens stores it again. Freezes and thaws go on meanwhile. Control thread.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.control.async_helpers import finish_even_if_cancelled
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.core.units import MIB
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.tiering import Tiering
from cwm_connector.protocol.calls import VerifyArgs
from cwm_connector.protocol.results import BadCopy, Verified
from cwm_connector.tiers.stack import BAD_COPY

_CURSOR: Final = "verify.cursor"
_BATCH: Final = 8
MAX_REPORTED: Final = 50
"""Bad copies that one answer lists; all are counted."""


@dataclass(slots=True)
class _Walk:
    """The findings of one run."""

    chunks: int = 0
    copies: int = 0
    n_bytes: int = 0
    bad: list[BadCopy] = field(default_factory=list)
    bad_copies: int = 0
    repaired: int = 0
    unread: int = 0
    """Copies that a tier could not deliver. They may be good or bad."""


class Verifier:
    """Runs one verification at a time. Control thread only."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering
        self._walking = asyncio.Lock()

    async def verify(self, args: VerifyArgs, progress: ProgressSink) -> Verified:
        """Check every stored copy and return what was found.

        Raises: `Code.BUSY` while another verification runs, `Code.ARGUMENT` for a negative rate.
        """
        if not 0 <= args.rate_mb_s < float("inf"):
            raise CWMError(Code.ARGUMENT, f"rate_mb_s is {args.rate_mb_s}; give MiB per second, or 0 for no limit")
        if self._walking.locked():
            raise CWMError(Code.BUSY, "another verification is running; wait for it, or cancel it and call again")
        async with self._walking:
            return await self._walk(args, progress)

    async def _walk(self, args: VerifyArgs, progress: ProgressSink) -> Verified:
        started = time.monotonic()
        noted = None if args.restart else await self._engine.catalog.run(lambda catalog: catalog.noted(_CURSOR))
        last = None if noted is None else ChunkKey(bytes.fromhex(noted))
        total = (await self._engine.catalog.run(lambda catalog: catalog.totals())).chunks
        seen = _Walk()
        while rows := await self._next(last):
            await self._batch(rows, args.repair, seen)
            last = rows[-1].key
            await self._note(last)
            progress(seen.chunks, total, "chunks verified")
            if args.rate_mb_s:
                ahead_s = seen.n_bytes / (args.rate_mb_s * MIB) - (time.monotonic() - started)
                await asyncio.sleep(max(0.0, ahead_s))
        await self._note(None)
        return Verified(
            resumed=noted is not None,
            chunks=seen.chunks,
            copies=seen.copies,
            bytes=seen.n_bytes,
            bad_copies=seen.bad_copies,
            repaired=seen.repaired,
            unread=seen.unread,
            bad=seen.bad,
            duration_ms=round((time.monotonic() - started) * 1000, 3),
        )

    async def _next(self, last: ChunkKey | None) -> Sequence[ChunkRow]:
        return await self._engine.catalog.run(lambda catalog: catalog.chunks_after(last, _BATCH))

    async def _note(self, last: ChunkKey | None) -> None:
        text = None if last is None else last.hex()
        await self._engine.catalog.run(lambda catalog: catalog.note(_CURSOR, text))

    async def _batch(self, rows: Sequence[ChunkRow], repair: bool, seen: _Walk) -> None:
        seen.chunks += len(rows)
        in_memory = [row for row in rows if self._engine.locations.holds(TierName.CPU, row.key)]
        if in_memory:
            await self._tier(in_memory, TierName.CPU, False, seen)  # a bad copy in memory is dropped in any case
        for tier in self._engine.durable_tiers:
            await self._tier([row for row in rows if tier in row.tiers], tier, repair, seen)

    async def _tier(self, rows: Sequence[ChunkRow], tier: TierName, repair: bool, seen: _Walk) -> None:
        if not rows:
            return
        outcomes = (await self._engine.verify([row.key for row in rows], tier)).outcomes
        for row in rows:
            outcome = outcomes[row.key]
            seen.copies += 1
            seen.n_bytes += outcome.size_bytes
            failure = outcome.failure
            if failure is None and tier is not TierName.CPU and outcome.size_bytes != row.size_bytes:
                failure = (Code.CHUNK_MISSING, "a rank's part is missing")
            if failure is None:
                continue
            if failure[0] not in BAD_COPY:
                seen.unread += 1
            elif tier is TierName.CPU or await self._still_there(row, tier):
                await self._found_bad(row, tier, failure, repair, seen)

    async def _still_there(self, row: ChunkRow, tier: TierName) -> bool:
        """Return False if the chunk was deleted or moved while it was checked."""
        now = await self._engine.catalog.run(lambda catalog: catalog.stored([row.key]))
        return row.key in now and tier in now[row.key].tiers

    async def _found_bad(
        self, row: ChunkRow, tier: TierName, failure: tuple[Code, str], repair: bool, seen: _Walk
    ) -> None:
        seen.bad_copies += 1
        self._engine.metrics.tiers.bad_copies.labels(tier.value).inc()
        repaired = tier is TierName.CPU or (repair and await finish_even_if_cancelled(self._tiering.replace(row, tier)))
        seen.repaired += repaired
        if len(seen.bad) < MAX_REPORTED:
            windows = await self._engine.catalog.run(lambda catalog: catalog.windows_with([row.key]))
            seen.bad.append(
                BadCopy(
                    hash=row.key.hex(),
                    storage_tier=tier.value,
                    fault=f"CWM-{int(failure[0])}: {failure[1]}",
                    windows=list(windows.get(row.key, ())),
                    repaired=repaired,
                )
            )
