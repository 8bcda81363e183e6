"""Freeze and delete: the two operations that write and remove chunks. One at a time, in one order.

    snapshot -> keys -> which are stored? -> hold blocks, copy out (captured) -> write, fsync (persisted, every rank)
    -> one catalog transaction -> acknowledged

A window is whole or absent at any instant because the transaction comes last; chunks that were written for a freeze
that did not get there are dropped, or swept at the next start.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cwm_connector.board import JobResult, Ticket
from cwm_connector.catalog.base import (
    Catalog,
    ChunkRow,
    NewWindow,
    WindowRow,
)
from cwm_connector.catalog.views import storage_tier
from cwm_connector.control import ProgressSink
from cwm_connector.engine import Engine, on_loop, settled, to_the_end
from cwm_connector.identity import ChunkSpec, chunk_specs
from cwm_connector.jobs import DropJob
from cwm_connector.protocol import (
    Code,
    CWMError,
    DeleteArgs,
    FreezeArgs,
    check_description,
    check_session_id,
    check_tags,
    check_window_name,
)
from cwm_connector.scheduler import SavePlan
from cwm_connector.sessions import HeadSnapshot, now_micros
from cwm_connector.terms import ChunkKey
from cwm_connector.visibility import BoundWindow

CAPTURE_STEP_S: Final = 0.002
PERSIST_STEP_S: Final = 0.01
RECOMPUTE_LIMIT_S: Final = 1800.0


@dataclass(slots=True)
class _Saved:
    """What a freeze had to store."""

    rows: list[ChunkRow] = field(default_factory=list)
    recomputed_tokens: int = 0
    captured_at: float = 0.0


def tier_fields(engine: Engine, keys: Sequence[ChunkKey]) -> dict[str, Any]:
    """`storage_tier` (where a thaw would read) and chunks per tier, as placed right now."""
    tiers = engine.placement.tiers_of(keys)
    return {"storage_tier": storage_tier(tiers), "tiers": tiers}


class Freezer:
    """Freezes and deletes; the control thread's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self._numbers = itertools.count(1)

    async def freeze(self, args: FreezeArgs, progress: ProgressSink) -> dict[str, Any]:
        """See the module's text. Raises: 1001–1003, 2001, 3001, 3003, 4001, 4003, 7001 and what the store raises."""
        started = time.perf_counter()
        check_session_id(args.session_id)
        name = check_window_name(args.window_name)
        description, tags = check_description(args.description), check_tags(args.tags)
        await self._require_free(name)
        async with self._turn:
            snapshot = await self._snapshot(args)
            chunks = await asyncio.to_thread(
                chunk_specs, self._engine.passport, self._engine.geometry, snapshot.token_ids
            )
            missing = await self._missing(chunks)
            parent = await self._engine.catalog.run(lambda catalog: _parent(catalog, snapshot.session_id))
            saved = await self._save(snapshot, chunks, missing, progress)
            new = NewWindow(
                name=name,
                description=description,
                tags=tags,
                model=self._engine.model,
                passport=self._engine.passport.fields,
                session_id=snapshot.session_id,
                head=snapshot.head,
                parent=parent,
                token_ids=snapshot.token_ids.tobytes(),
                restorable_tokens=chunks[-1].end_block * self._engine.geometry.block_tokens,
                chunks=[chunk.key for chunk in chunks],
                stored=saved.rows,
                created_at=now_micros(),
            )
            row = await self._commit(new, missing)
        metrics = self._engine.metrics
        metrics.recomputed_tokens.inc(saved.recomputed_tokens)
        metrics.stored_bytes.inc(sum(chunk.size_bytes for chunk in saved.rows))
        metrics.capture_seconds.observe(saved.captured_at - started)
        metrics.freeze_seconds.observe(time.perf_counter() - started)
        return {
            "window_name": row.name,
            "session_id": row.session_id,
            "token_count": row.token_count,
            "captured_tokens": row.restorable_tokens,
            "recomputed_tokens": saved.recomputed_tokens,
            "block_count": row.block_count,
            "total_size_bytes": row.size_bytes,
            "new_bytes": sum(chunk.size_bytes for chunk in saved.rows),
            **tier_fields(self._engine, [chunk.key for chunk in chunks]),
            "parent_window": row.parent,
            "capture_ms": round((saved.captured_at - started) * 1000, 3),
            "duration_ms": round((time.perf_counter() - started) * 1000, 3),
        }

    async def delete(self, args: DeleteArgs) -> dict[str, Any]:
        """Row and references go first; then the chunks that nobody refers to any more leave every tier."""
        name = check_window_name(args.window_name)
        async with self._turn:
            return await to_the_end(self._delete(name))

    async def _delete(self, name: str) -> dict[str, Any]:
        deleted = await self._engine.catalog.run(lambda catalog: catalog.delete_window(name))
        self._engine.visibility.unbind(name)
        dropped = await self._drop([row.key for row in deleted.orphans]) if deleted.orphans else None
        return {
            "window_name": name,
            "blocks_deleted": len(deleted.orphans),
            "blocks_shared": deleted.shared,
            "space_freed_bytes": sum(outcome.size_bytes for outcome in dropped.outcomes.values()) if dropped else 0,
        }

    # --- steps of a freeze ---

    async def _require_free(self, name: str) -> None:
        """Refuses a taken name before any work is done; the commit refuses it again."""
        try:
            await self._engine.catalog.run(lambda catalog: catalog.window(name))
        except CWMError as problem:
            if problem.code is Code.WINDOW_NOT_FOUND:
                return
            raise
        raise CWMError(
            Code.WINDOW_EXISTS,
            f"a window named {name!r} exists; choose another name or delete it first",
            window_name=name,
        )

    async def _snapshot(self, args: FreezeArgs) -> HeadSnapshot:
        snapshot = await self._engine.ask(lambda side: side.snapshot(args.session_id, args.head))
        if not snapshot.text_only:
            raise CWMError(
                Code.STATE,
                "this session used an adapter, images or embeddings, whose KV can't be frozen yet; freeze text only",
            )
        return snapshot

    async def _missing(self, chunks: Sequence[ChunkSpec]) -> list[ChunkSpec]:
        """The chunks that have to be stored. Raises: CWM-4003 if they don't fit the disk's limit."""
        keys = [chunk.key for chunk in chunks]
        stored, totals = await self._engine.catalog.run(lambda catalog: (catalog.stored(keys), catalog.totals()))
        missing = [chunk for chunk in chunks if chunk.key not in stored]
        needed = sum(self._engine.stored_bytes(chunk.blocks) for chunk in missing)
        used = totals.stored_bytes
        limit = self._engine.settings.disk_cache_bytes
        if used + needed > limit:
            raise CWMError(
                Code.QUOTA,
                f"{needed} bytes more are over the disk limit ({used} of {limit} used); delete windows or raise "
                "CWM_DISK_CACHE_GB",
                needed_bytes=needed,
                used_bytes=used,
                limit_bytes=limit,
            )
        return missing

    async def _save(
        self,
        snapshot: HeadSnapshot,
        chunks: Sequence[ChunkSpec],
        missing: list[ChunkSpec],
        progress: ProgressSink,
    ) -> _Saved:
        if not missing:
            return _Saved(captured_at=time.perf_counter())
        planning = asyncio.ensure_future(self._plan(snapshot, chunks, missing, progress))
        try:
            plan = await asyncio.shield(planning)
        except asyncio.CancelledError:
            # The plan may hold blocks and have its job under way already: both come to their end first.
            plan = await to_the_end(planning)
            await to_the_end(self._discard(plan.ticket, missing))
            raise
        ticket = plan.ticket
        if ticket is None:
            raise CWMError(
                Code.CHUNK_MISSING,
                f"{plan.lost_blocks} blocks of the session were evicted and could not be computed again; "
                "give vLLM more KV memory and try again",
            )

        def tell(done: int) -> None:
            progress(done, len(missing), "chunks stored")

        ticket.on_progress = on_loop(tell)
        try:
            await self._engine.reported(ticket.captured, CAPTURE_STEP_S)
            captured_at = time.perf_counter()
            progress(0, len(missing), "captured")
            result = await self._engine.reported(ticket.finished, PERSIST_STEP_S)
        except BaseException:
            await to_the_end(self._discard(ticket, missing))
            raise
        rows = [
            ChunkRow(
                chunk.key, chunk.blocks * self._engine.geometry.block_tokens, result.outcomes[chunk.key].size_bytes
            )
            for chunk in missing
        ]
        return _Saved(rows, plan.computed_tokens, captured_at)

    async def _plan(
        self,
        snapshot: HeadSnapshot,
        chunks: Sequence[ChunkSpec],
        missing: list[ChunkSpec],
        progress: ProgressSink,
    ) -> SavePlan:
        plan = await self._engine.ask(lambda side: side.plan_save(snapshot, missing))
        if plan.ticket is not None:
            return plan
        progress(0, len(missing), f"computing {plan.lost_blocks} evicted blocks again")
        return await self._recompute(snapshot, chunks, missing)

    async def _recompute(
        self, snapshot: HeadSnapshot, chunks: Sequence[ChunkSpec], missing: list[ChunkSpec]
    ) -> SavePlan:
        """Brings evicted blocks back with a request of our own; what is stored is loaded rather than computed."""
        leading = 0
        for chunk in chunks:
            if chunk is missing[0]:
                break
            leading = chunk.end_block
        stored = BoundWindow("", snapshot.token_ids, tuple(chunks), usable_blocks=leading)
        request_id = f"cwm-recompute-{next(self._numbers)}"
        tokens = snapshot.token_ids[: chunks[-1].end_block * self._engine.geometry.block_tokens]
        plan = await self._engine.ask(lambda side: side.expect_recompute(request_id, stored, missing))
        await asyncio.to_thread(self._engine.submit_prefill, request_id, memoryview(tokens), snapshot.cache_salt)
        if not await settled(plan, RECOMPUTE_LIMIT_S):
            raise CWMError(
                Code.OPERATION_TIMEOUT, "evicted blocks could not be computed again in time; try again later"
            )
        return plan.result()

    async def _commit(self, new: NewWindow, missing: list[ChunkSpec]) -> WindowRow:
        try:
            return await to_the_end(self._engine.catalog.run(lambda catalog: catalog.commit_window(new)))
        except CWMError:
            await to_the_end(self._discard(None, missing))
            raise

    async def _discard(self, ticket: Ticket | None, chunks: Sequence[ChunkSpec]) -> None:
        """Removes what a failed freeze wrote, once its job is over, unless the catalog refers to it after all."""
        if ticket is not None:
            while not ticket.finished.done():
                self._engine.mailbox.nudge()
                await settled(ticket.finished, PERSIST_STEP_S)
        keys = [chunk.key for chunk in chunks]
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored(keys))
        await self._drop([key for key in keys if key not in stored])

    async def _drop(self, keys: Sequence[ChunkKey]) -> JobResult:
        ticket = self._engine.board.post(DropJob(self._engine.board.next_id(), tuple(keys)))
        return await self._engine.reported(ticket.finished, PERSIST_STEP_S)


def _parent(catalog: Catalog, session_id: str) -> str | None:
    """The window that the session last went through: the one frozen from it or thawed into it most recently."""
    row = catalog.session(session_id)
    frozen = [catalog.window(name) for name in (row.windows[:1] if row else ())]
    thawed = [each for each in catalog.bindings() if each.session_id == session_id]
    steps = [(each.created_at, each.name) for each in frozen]
    steps += [(each.created_at, each.window_name) for each in thawed[-1:]]
    return max(steps)[1] if steps else None
