"""Freezes sessions, one at a time.

    snapshot of the session -> chunk keys -> which are stored? -> make room -> pin blocks and copy them out (captured)
    -> write and fsync on every rank (persisted) -> one catalog transaction -> answer

A window is whole or absent at any instant because the transaction comes last. Chunks of a freeze that did not get there
are dropped at once, or swept at the next start after a kill. Control thread.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import msgspec

from cwm_connector.catalog.base import (
    ChunkRow,
    NewWindow,
    WindowRow,
)
from cwm_connector.catalog.results import iso, storage_tier, taken_proof
from cwm_connector.control.async_helpers import call_on_loop, finish_even_if_cancelled, until_done
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec, chunk_specs
from cwm_connector.core.names import check_description, check_tags, check_window_name, legal_session_id
from cwm_connector.core.speaker import check_session
from cwm_connector.operations.context import PERSIST_STEP_S, EngineContext
from cwm_connector.operations.freeze.parent import parent_of
from cwm_connector.operations.freeze.under_way import FreezeUnderWay, Stage
from cwm_connector.operations.proof.prover import Prover
from cwm_connector.operations.tiering import Tiering
from cwm_connector.operations.window_commit import WindowCommit
from cwm_connector.protocol.calls import FreezeArgs
from cwm_connector.protocol.results import OtherHead, TimedFreeze
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.sessions.token_run import TokenRun
from cwm_connector.sessions.views import HeadSnapshot, HeadSummary
from cwm_connector.step.job_board import JobResult, Ticket
from cwm_connector.step.save_plan import Recomputed, SaveOrder

CAPTURE_STEP_S: Final = 0.002
"""Between two engine steps while blocks are copied out."""
RECOMPUTE_LIMIT_S: Final = 1800.0
RECOMPUTE_STEP_S: Final = 0.5
"""Between two looks at how far a recompute is."""
ATTEMPTS: Final = 3
"""A freeze begins again when another engine deletes chunks that it refers to before it commits."""


@dataclass(slots=True)
class _Saved:
    """The chunks that a freeze had to store."""

    rows: list[ChunkRow] = field(default_factory=list)
    recomputed_tokens: int = 0
    captured_at: float = 0.0


class _Lost(Exception):
    """Blocks of the order were evicted, and the engine has to compute them again."""

    def __init__(self, chunks: Sequence[ChunkSpec], order: SaveOrder, blocks: int) -> None:
        super().__init__()
        self.chunks, self.order, self.blocks = chunks, order, blocks


class _Evicted(Exception):
    """Blocks of the chunk `first` were evicted and are not to be computed again."""

    def __init__(self, first: ChunkSpec) -> None:
        super().__init__()
        self.first = first


class Freezer:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering
        self._window_commit = WindowCommit(engine, tiering)
        self._prover = Prover(engine)
        self._numbers = itertools.count(1)

    async def freeze(self, args: FreezeArgs, progress: ProgressSink, *, asked_for: bool = True) -> TimedFreeze:
        """Freeze a session into a new window.

        With `asked_for=False` the freeze computes no evicted block again and pushes no hot chunk out of CPU memory. The
        window then restores what comes before the evicted blocks, and its description says so.

        Raises: `Code.SESSION_ID`, `Code.WINDOW_NAME`, `Code.ARGUMENT`, `Code.SESSION_NOT_FOUND`, `Code.CHUNK_MISSING`,
        `Code.STATE`, `Code.WINDOW_EXISTS`, `Code.WRITE_FAILED`, `Code.QUOTA`, `Code.MEMORY` and what the catalog
        raises.
        """
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

    # --- steps ---

    async def _prove(self, frozen: TimedFreeze, snapshot: HeadSnapshot, freeze: FreezeUnderWay) -> TimedFreeze:
        """Take the window's proof. If there is none, the result says why: the window exists all the same."""
        freeze.report(Stage.PROVING, 0, 1, "taking the proof")
        try:
            proof = await self._prover.take(frozen.window_name, snapshot.token_ids, snapshot.cache_salt)
        except CWMError as problem:
            return msgspec.structs.replace(frozen, no_proof=f"no proof was taken: {problem.message}")
        return msgspec.structs.replace(frozen, proof=taken_proof(proof))

    async def _freeze(
        self, args: FreezeArgs, freeze: FreezeUnderWay, asked_for: bool
    ) -> tuple[TimedFreeze, HeadSnapshot]:
        started = time.perf_counter()
        passport = await self._engine.known_passport()
        async with self._engine.chunk_lock:
            snapshot = await self._snapshot(args)
            freeze.stage, freeze.token_count = Stage.COPYING, len(snapshot.token_ids)
            chunks = await asyncio.to_thread(chunk_specs, passport, self._engine.geometry, snapshot.token_ids)
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
            saved, row = await self._store_locked(snapshot, chunks, new, freeze, asked_for)
        except _Lost as lost:
            async with self._recomputing(snapshot, lost, freeze) as recomputed:
                saved, row = await self._store_recomputed(snapshot, chunks, new, freeze)
            saved.recomputed_tokens = recomputed.computed_tokens
        keys = [chunk.key for chunk in chunks[: row.block_count]]
        self._tiering.used(keys)
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
        )
        return frozen, snapshot

    def _mark_frozen(self, snapshot: HeadSnapshot, row: WindowRow) -> None:
        """Tell the index of the sessions what the window holds. Nobody waits for the engine's next step."""
        size = self._engine.geometry.block_tokens
        blocks = row.restorable_tokens // size
        if blocks < len(snapshot.token_ids) // size:
            snapshot = replace(
                snapshot,
                tokens=TokenRun(snapshot.token_ids[: blocks * size]),
                block_hashes=tuple(snapshot.block_hashes)[:blocks],
            )
        self._engine.step_queue.call(lambda: self._engine.scheduler.mark_frozen(snapshot))

    async def _store_locked(
        self,
        snapshot: HeadSnapshot,
        chunks: Sequence[ChunkSpec],
        new: NewWindow,
        freeze: FreezeUnderWay,
        asked_for: bool,
    ) -> tuple[_Saved, WindowRow]:
        """Save and commit under `chunk_lock`. Raises: `_Lost` if blocks have to be computed again first."""
        freeze.stage = Stage.WAITING
        async with self._engine.chunk_lock:
            freeze.stage = Stage.COPYING
            saved, row = await self._store(snapshot, chunks, new, freeze, asked_for)
            self._mark_frozen(snapshot, row)
            return saved, row

    async def _store_recomputed(
        self, snapshot: HeadSnapshot, chunks: Sequence[ChunkSpec], new: NewWindow, freeze: FreezeUnderWay
    ) -> tuple[_Saved, WindowRow]:
        """Save and commit once the evicted blocks are back."""
        self._engine.passports.require_still(new.passport)
        try:
            return await self._store_locked(snapshot, chunks, new, freeze, asked_for=True)
        except _Lost as lost:
            raise CWMError(
                Code.CHUNK_MISSING,
                f"{lost.blocks} blocks of the session were evicted and could not be computed again; "
                "give vLLM more KV memory and try again",
            ) from None

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
                freeze.stage = Stage.COMMITTING
                return saved, await self._window_commit.commit(self._window_over(chunks, new, saved), order)
            except _Evicted as evicted:
                chunks = chunks[: chunks.index(evicted.first)]
                if not chunks:
                    raise CWMError(
                        Code.CHUNK_MISSING, "the session's blocks were evicted; freeze it with window_freeze"
                    ) from None
            except CWMError as problem:
                refused += 1
                if problem.code is not Code.CHUNK_MISSING or refused == ATTEMPTS:
                    raise

    def _window_over(self, chunks: Sequence[ChunkSpec], new: NewWindow, saved: _Saved) -> NewWindow:
        """Return `new` over `chunks`: all chunks of the session, or those before the first evicted block."""
        restorable = chunks[-1].end_block * self._engine.geometry.block_tokens
        description = new.description
        if restorable < new.restorable_tokens:
            description += f"; partial, {restorable} of {new.restorable_tokens} tokens: the rest was evicted"
        return replace(
            new,
            description=description,
            restorable_tokens=restorable,
            chunks=[chunk.key for chunk in chunks],
            stored=saved.rows,
        )

    async def _snapshot(self, args: FreezeArgs) -> HeadSnapshot:
        snapshot = await self._engine.on_engine_thread(lambda side: side.snapshot(args.session_id, args.head))
        if not snapshot.text_only:
            raise CWMError(
                Code.STATE,
                "this session used an adapter, images or embeddings, whose KV can't be frozen yet; freeze text only",
            )
        return snapshot

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
            raise _Evicted(order.chunks[plan.whole_chunks])
        if plan.ticket is None:
            raise _Lost(chunks, order, plan.lost_blocks)
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

    @asynccontextmanager
    async def _recomputing(
        self, snapshot: HeadSnapshot, lost: _Lost, freeze: FreezeUnderWay
    ) -> AsyncIterator[Recomputed]:
        """Compute evicted blocks again and pin them until their save is planned. `chunk_lock` is free meanwhile."""
        recomputed = await self._recompute(snapshot, lost, freeze)
        release = recomputed.blocks.release_all
        freeze.let_go = partial(self._engine.step_queue.call, release)
        try:
            yield recomputed
        finally:
            freeze.let_go()

    async def _recompute(self, snapshot: HeadSnapshot, lost: _Lost, freeze: FreezeUnderWay) -> Recomputed:
        """Bring evicted blocks back with a request of our own, which loads stored chunks and computes the rest.

        The request is aborted if the freeze is cancelled or the time is over.
        """
        engine = self._engine
        tokens = snapshot.token_ids[: lost.chunks[-1].end_block * engine.geometry.block_tokens]
        freeze.report(Stage.COMPUTING, 0, len(tokens), f"computing {lost.blocks} evicted blocks again")
        leading = lost.order.chunks[0].first_block
        stored = BoundWindow(name="", token_ids=snapshot.token_ids, chunks=tuple(lost.chunks), usable_blocks=leading)
        request_id = f"cwm-recompute-{next(self._numbers)}"
        done = await engine.on_engine_thread(lambda side: side.expect_recompute(request_id, stored))
        submit = partial(engine.submit_prefill, request_id, memoryview(tokens), snapshot.cache_salt)
        submitting = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            await asyncio.shield(submitting)
            return await self._follow(request_id, done, len(tokens), freeze)
        except BaseException:
            with suppress(Exception):
                await finish_even_if_cancelled(submitting)  # so that the abort comes after it
            if done.cancel():
                engine.abort_request(request_id)
            elif done.exception() is None:
                engine.step_queue.call(done.result().blocks.release_all)
            raise

    async def _follow(
        self, request_id: str, done: "Future[Recomputed]", tokens: int, freeze: FreezeUnderWay
    ) -> Recomputed:
        """Report the progress of a recompute until it is done."""
        give_up_at = time.monotonic() + RECOMPUTE_LIMIT_S
        async for _ in until_done(done, itertools.repeat(RECOMPUTE_STEP_S)):
            if time.monotonic() > give_up_at:
                raise CWMError(
                    Code.OPERATION_TIMEOUT, "evicted blocks could not be computed again in time; try again later"
                )
            there = await self._engine.on_engine_thread(lambda side: side.recomputed_tokens(request_id))
            freeze.report(Stage.COMPUTING, there, tokens, "tokens computed again")
        return done.result()

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
