"""Freezes sessions, one at a time.

    snapshot of the session -> chunk keys -> which are stored? -> make room -> pin blocks and copy them out (captured)
    -> write and fsync on every rank (persisted) -> one catalog transaction -> answer

A window is whole or absent at any instant because the transaction comes last. Chunks of a freeze that did not get there
are dropped at once, or swept at the next start after a kill. Control thread.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from cwm_connector.catalog.base import (
    ChunkRow,
    NewWindow,
    WindowRow,
)
from cwm_connector.catalog.results import iso, storage_tier, taken_proof
from cwm_connector.control.async_helpers import call_on_loop, finish_even_if_cancelled
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec, Passport, boundaries_of, why_not_all, window_chunks
from cwm_connector.core.names import check_description, check_tags, check_window_name, legal_session_id
from cwm_connector.core.speaker import check_session
from cwm_connector.operations.context import PERSIST_STEP_S, EngineContext
from cwm_connector.operations.extras import extras_of
from cwm_connector.operations.freeze.parent import parent_of
from cwm_connector.operations.freeze.recompute import Lost, Recomputer
from cwm_connector.operations.freeze.under_way import FreezeUnderWay, Stage
from cwm_connector.operations.proof.prover import Prover
from cwm_connector.operations.tiering import Tiering
from cwm_connector.operations.window_commit import WindowCommit
from cwm_connector.protocol.calls import FreezeArgs
from cwm_connector.protocol.results import OtherHead, TimedFreeze
from cwm_connector.sessions.token_run import TokenRun
from cwm_connector.sessions.views import HeadSnapshot, HeadSummary
from cwm_connector.step.job_board import JobResult, Ticket
from cwm_connector.step.save_plan import SaveOrder

CAPTURE_STEP_S: Final = 0.002
"""Between two engine steps while blocks are copied out."""
LOST_ITEMS: Final = "images or embeddings can't be computed again"
ATTEMPTS: Final = 3
"""A freeze begins again when another engine deletes chunks that it refers to before it commits."""


@dataclass(slots=True)
class _Saved:
    """The chunks that a freeze had to store."""

    rows: list[ChunkRow] = field(default_factory=list)
    window: Sequence[ChunkSpec] = ()
    """All chunks of the window."""
    recomputed_tokens: int = 0
    captured_at: float = 0.0


class _Evicted(Exception):
    """Blocks of the chunk `first` were evicted and are not to be computed again."""

    def __init__(self, first: ChunkSpec, boundary: int) -> None:
        """`boundary`: where a model that can be resumed at boundaries alone could be resumed now, in blocks."""
        super().__init__()
        self.first, self.boundary = first, boundary


class Freezer:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering
        self._window_commit = WindowCommit(engine, tiering)
        self._prover = Prover(engine)
        self._recomputer = Recomputer(engine)

    async def freeze(self, args: FreezeArgs, progress: ProgressSink, *, unasked: str | None = None) -> TimedFreeze:
        """Freeze a session into a new window, and report it.

        `unasked`: why the engine freezes by itself. Such a freeze computes no evicted block again and pushes no hot
        chunk out of CPU memory. The window then restores what comes before the evicted blocks, and its description
        says so.

        Raises: `Code.SESSION_ID`, `Code.WINDOW_NAME`, `Code.ARGUMENT`, `Code.SESSION_NOT_FOUND`, `Code.CHUNK_MISSING`,
        `Code.STATE`, `Code.WINDOW_EXISTS`, `Code.WRITE_FAILED`, `Code.QUOTA`, `Code.MEMORY` and what the catalog
        raises.
        """
        work = self._checked_freeze(args, progress, unasked is None)
        return await self._engine.observer.freeze(work, args.window_name, unasked)

    # --- steps ---

    async def _checked_freeze(self, args: FreezeArgs, progress: ProgressSink, asked_for: bool) -> TimedFreeze:
        args = _with_legal_ids(args)
        args = msgspec.structs.replace(
            args,
            window_name=check_window_name(args.window_name),
            description=check_description(args.description),
            tags=check_tags(args.tags),
        )
        await self._window_commit.require_free(args.window_name)
        self._engine.scheduler.copy_gate.require_awake()
        with self._engine.freezes.begin(args.window_name, progress) as freeze:
            frozen, snapshot = await self._freeze(args, freeze, asked_for)
            return await self._prove(frozen, snapshot, freeze) if args.prove else frozen

    async def _prove(self, frozen: TimedFreeze, snapshot: HeadSnapshot, freeze: FreezeUnderWay) -> TimedFreeze:
        """Take the window's proof. If there is none, the result says why: the window exists all the same."""
        freeze.report(Stage.PROVING, 0, 1, "taking the proof")
        try:
            extras = await extras_of(self._engine, snapshot.carried)
            proof = await self._prover.take(frozen.window_name, snapshot.token_ids, snapshot.cache_salt, extras)
        except CWMError as problem:
            return msgspec.structs.replace(frozen, no_proof=f"no proof was taken: {problem.message}")
        return msgspec.structs.replace(frozen, proof=taken_proof(proof))

    async def _freeze(
        self, args: FreezeArgs, freeze: FreezeUnderWay, asked_for: bool
    ) -> tuple[TimedFreeze, HeadSnapshot]:
        started = time.perf_counter()
        passport = await self._engine.known_passport()
        async with self._engine.chunk_lock:
            snapshot, passport = await self._snapshot(args, passport)
            freeze.stage, freeze.token_count = Stage.COPYING, len(snapshot.token_ids)
            chunks = await self._chunks(snapshot, passport)
            keys = [chunk.key for chunk in chunks]
            parent = await self._engine.catalog.run(
                lambda catalog: parent_of(catalog, snapshot.session_id, snapshot.cache_salt, keys)
            )
        new = self._window_commit.new_window(
            name=args.window_name,
            passport=passport.fields,
            description=args.description,
            tags=args.tags,
            session_id=snapshot.session_id,
            head=snapshot.head,
            parent=parent,
            token_ids=snapshot.token_ids.tobytes(),
            chunks=chunks,
            private=snapshot.cache_salt is not None,
        )
        try:
            computes = asked_for and not passport.extras.items
            saved, row = await self._store_locked(snapshot, chunks, new, freeze, computes)
        except Lost as lost:
            async with self._recomputer.recomputing(snapshot, lost, freeze) as recomputed:
                saved, row = await self._store_recomputed(snapshot, lost, new, freeze)
            saved.recomputed_tokens = recomputed.computed_tokens
        self._tiering.used(keys := [chunk.key for chunk in saved.window])
        metrics = self._engine.metrics
        metrics.recomputed_tokens.inc(saved.recomputed_tokens)
        metrics.stored_bytes.inc(sum(chunk.size_bytes for chunk in saved.rows))
        metrics.capture_seconds.observe(saved.captured_at - started)
        metrics.freeze_seconds.observe(time.perf_counter() - started)
        tiers = self._engine.locations.tiers_of(keys)
        frozen = TimedFreeze(
            window_name=row.name,
            session_id=row.session_id,
            token_count=row.token_count,
            captured_tokens=row.restorable_tokens,
            recomputed_tokens=saved.recomputed_tokens,
            block_count=row.block_count,
            total_size_bytes=row.size_bytes,
            new_bytes=sum(chunk.size_bytes for chunk in saved.rows),
            storage_tier=storage_tier(tiers),
            tiers=tiers,
            parent_window=row.parent,
            capture_ms=round((saved.captured_at - started) * 1000, 3),
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
            head=snapshot.head,
            head_reason=snapshot.reason.sentence,
            other_heads=[_other_head(head) for head in snapshot.others],
            more_heads=snapshot.more_heads,
            **self._resumable(row, saved, bool(passport.extras.items)),
        )
        return frozen, snapshot

    async def _snapshot(self, args: FreezeArgs, passport: Passport) -> tuple[HeadSnapshot, Passport]:
        """Return the head, and the passport of its window."""
        snapshot = await self._engine.on_engine_thread(lambda side: side.snapshot(args.session_id, args.head))
        extras = await extras_of(self._engine, snapshot.carried)
        return snapshot, passport.carrying(extras.before(len(snapshot.token_ids)))

    def _resumable(self, row: WindowRow, saved: _Saved, has_items: bool) -> dict[str, Any]:
        """Return the fields on how much of the window can be resumed, and why not more."""
        geometry = self._engine.geometry
        evicted = row.token_count - row.restorable_tokens >= geometry.block_tokens
        why = f"the rest was evicted, and {LOST_ITEMS}" if has_items and evicted else None
        boundaries = boundaries_of(geometry, saved.window)
        return {
            "resumable_tokens": row.restorable_tokens,
            "boundaries": [end * geometry.block_tokens for end in boundaries] or None,
            "not_resumable": why or why_not_all(geometry, row.token_count, row.restorable_tokens),
        }

    async def _chunks(
        self, snapshot: HeadSnapshot, passport: Passport, boundaries: Sequence[int] = ()
    ) -> tuple[ChunkSpec, ...]:
        """Return the chunks of the session's window. Raises: `Code.STATE` if it is too short to have any."""
        engine = self._engine
        tokens = snapshot.token_ids
        chunks = await asyncio.to_thread(window_chunks, passport, engine.geometry, tokens, boundaries)
        if not chunks:
            raise CWMError(
                Code.STATE,
                f"this model can be resumed every {engine.geometry.block_tokens} tokens and the session has "
                f"{len(tokens)}; freeze it later",
            )
        return chunks

    def _mark_frozen(self, snapshot: HeadSnapshot, row: WindowRow) -> None:
        """Tell the index of the sessions what the window holds. Nobody waits for the engine's next step."""
        size = self._engine.geometry.block_tokens
        hashes = snapshot.block_hashes
        if row.restorable_tokens // size < len(snapshot.token_ids) // size:
            snapshot = replace(
                snapshot,
                tokens=TokenRun(snapshot.token_ids[: row.restorable_tokens]),
                block_hashes=tuple(hashes)[: row.restorable_tokens // self._engine.hash_tokens],
            )
        self._engine.step_queue.collect(self._engine.scheduler.mark_frozen(snapshot))

    async def _store_locked(
        self,
        snapshot: HeadSnapshot,
        chunks: Sequence[ChunkSpec],
        new: NewWindow,
        freeze: FreezeUnderWay,
        asked_for: bool,
    ) -> tuple[_Saved, WindowRow]:
        """Save and commit under `chunk_lock`. Raises: `Lost` if blocks have to be computed again first."""
        freeze.stage = Stage.WAITING
        async with self._engine.chunk_lock:
            freeze.stage = Stage.COPYING
            saved, row = await self._store(snapshot, chunks, new, freeze, asked_for)
            self._mark_frozen(snapshot, row)
            return saved, row

    async def _store_recomputed(
        self, snapshot: HeadSnapshot, lost: Lost, new: NewWindow, freeze: FreezeUnderWay
    ) -> tuple[_Saved, WindowRow]:
        """Save and commit once the evicted blocks are back.

        A model that can be resumed at boundaries alone gets a second one where its last prompt ended, so that its last
        answer can be given again.
        """
        await self._engine.known_passport()  # the engine may have slept meanwhile
        self._engine.passports.require_still(new.passport)
        end = lost.chunks[-1].end_block
        for boundaries in dict.fromkeys(((lost.boundary, end), (end,))) if lost.boundary else ((end,),):
            try:
                chunks = await self._chunks(snapshot, Passport(new.passport), boundaries)
                return await self._store_locked(snapshot, chunks, new, freeze, asked_for=True)
            except Lost as again:
                lost = again
        raise CWMError(
            Code.CHUNK_MISSING,
            f"{lost.blocks} blocks of the session were evicted and could not be computed again; "
            "give vLLM more KV memory and try again",
        )

    async def _store(
        self,
        snapshot: HeadSnapshot,
        chunks: Sequence[ChunkSpec],
        new: NewWindow,
        freeze: FreezeUnderWay,
        asked_for: bool,
    ) -> tuple[_Saved, WindowRow]:
        """Save missing chunks and commit. Begin again if another engine has deleted some chunks meanwhile."""
        refused = 0
        while True:
            order = await self._window_commit.order_missing(chunks, asked_for=asked_for)
            try:
                saved = await self._save(snapshot, chunks, order, freeze)
                saved.window = chunks
                freeze.stage = Stage.COMMITTING
                return saved, await self._window_commit.commit(self._window_over(chunks, new, saved), order)
            except _Evicted as evicted:
                chunks = await self._before(evicted, snapshot, chunks, Passport(new.passport))
                if not chunks:
                    has_items = bool(Passport(new.passport).extras.items)
                    how = f"and {LOST_ITEMS}; continue the session" if has_items else "so freeze it with window_freeze"
                    raise CWMError(Code.CHUNK_MISSING, f"the session's blocks were evicted, {how}") from None
            except CWMError as problem:
                refused += 1
                if problem.code is not Code.CHUNK_MISSING or refused == ATTEMPTS:
                    raise

    async def _before(
        self, evicted: _Evicted, snapshot: HeadSnapshot, chunks: Sequence[ChunkSpec], passport: Passport
    ) -> Sequence[ChunkSpec]:
        """Return the chunks of what vLLM still has."""
        if not self._engine.geometry.groups:
            return chunks[: chunks.index(evicted.first)]
        is_shorter = 0 < evicted.boundary < chunks[-1].end_block
        return await self._chunks(snapshot, passport, (evicted.boundary,)) if is_shorter else ()

    def _window_over(self, chunks: Sequence[ChunkSpec], new: NewWindow, saved: _Saved) -> NewWindow:
        """Return `new` over `chunks`: all chunks of the session, or those before the first evicted block."""
        restorable = chunks[-1].end_block * self._engine.geometry.block_tokens
        description = new.description
        if restorable < new.restorable_tokens:
            why = "its last prompt ended there" if self._engine.geometry.groups else "the rest was evicted"
            description += f"; partial, {restorable} of {new.restorable_tokens} tokens: {why}"
        return replace(
            new,
            description=description,
            restorable_tokens=restorable,
            chunks=[chunk.key for chunk in chunks],
            stored=saved.rows,
        )

    async def _save(
        self,
        snapshot: HeadSnapshot,
        chunks: Sequence[ChunkSpec],
        order: SaveOrder,
        freeze: FreezeUnderWay,
    ) -> _Saved:
        if not order.chunks:
            return _Saved(captured_at=time.perf_counter())
        planning = asyncio.ensure_future(self._engine.collect(self._engine.scheduler.plan_save(snapshot, order)))
        try:
            (plan,) = await asyncio.shield(planning)
        except asyncio.CancelledError:
            # The plan may have pinned blocks and posted its job already. Both come to their end first.
            (plan,) = await finish_even_if_cancelled(planning)
            await finish_even_if_cancelled(self._finish_and_discard(plan.ticket, order))
            raise
        if freeze.let_go is not None:
            freeze.let_go()
        if plan.ticket is None and not order.asked_for:
            raise _Evicted(order.chunks[plan.whole_chunks], plan.boundary)
        if plan.ticket is None:
            raise Lost(chunks, order, plan.lost_blocks, plan.boundary)
        result, captured_at = await self._persist(plan.ticket, order, freeze)
        rows = self._window_commit.new_rows(order, lambda chunk: result.outcomes[chunk.key].size_bytes)
        return _Saved(rows=rows, captured_at=captured_at)

    async def _persist(self, ticket: Ticket, order: SaveOrder, freeze: FreezeUnderWay) -> tuple[JobResult, float]:
        """Wait until every rank has written its chunks. Return the outcomes and when the last block was copied out."""

        def report_stored(done: int) -> None:
            freeze.report(Stage.STORING, done, len(order.chunks), "chunks stored")

        ticket.on_progress = call_on_loop(report_stored)
        try:
            await self._engine.wait_for_workers(ticket.captured, CAPTURE_STEP_S)
            captured_at = time.perf_counter()
            freeze.report(Stage.STORING, 0, len(order.chunks), "captured")
            return await self._engine.wait_for_workers(ticket.finished, PERSIST_STEP_S), captured_at
        except BaseException:
            await finish_even_if_cancelled(self._finish_and_discard(ticket, order))
            raise

    async def _finish_and_discard(self, ticket: Ticket | None, order: SaveOrder) -> None:
        """Wait until a failed freeze's job is over, then remove what it wrote unless the catalog refers to it."""
        if ticket is not None:
            await self._engine.workers_done(ticket.finished, PERSIST_STEP_S)
        await self._window_commit.discard(order)


def _with_legal_ids(args: FreezeArgs) -> FreezeArgs:
    """Return the arguments with the ids that the engine uses. `SESSION/HEAD` as the session names the head too."""
    speaker = check_session(args.session_id)
    head = speaker.head if args.head is None else legal_session_id(args.head) or args.head
    return msgspec.structs.replace(args, session_id=speaker.session_id, head=head)


def _other_head(head: HeadSummary) -> OtherHead:
    return OtherHead(
        head=head.head, token_count=head.token_count, last_active_at=iso(head.last_active_at), title=head.title
    )
