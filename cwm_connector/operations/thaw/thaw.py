"""Thaws and clones windows, and binds the thaws of before a restart again. Nothing here writes a chunk.

A thaw decides which chunks a session's requests may load. With `prewarm` the workers read and verify them first.
Without it, the recorded locations decide, and every load verifies what it reads. Control thread.
"""

import asyncio
import logging
import secrets
import time
from array import array
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cwm_connector.catalog.base import Binding, Catalog, ChunkRow, Proof, WindowRow
from cwm_connector.control.async_helpers import call_on_loop, finish_even_if_cancelled
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec, Passport, boundaries_of, specs_of
from cwm_connector.core.names import check_description, check_tags, check_window_name
from cwm_connector.core.speaker import check_session_id
from cwm_connector.core.types import ChunkKey, TierName, now_micros, salt_hash
from cwm_connector.operations.context import PERSIST_STEP_S, EngineContext
from cwm_connector.operations.proof.prover import UNPROVED, Prover
from cwm_connector.operations.tiering import Tiering
from cwm_connector.protocol.calls import CloneArgs, ProveArgs, ThawArgs, WarmArgs
from cwm_connector.protocol.proofs import Outcome, ProofCheck
from cwm_connector.protocol.results import Cloned, LoadPlan, Proved, Thawed, Warmed
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.settings import LoadPolicy
from cwm_connector.step.job_board import JobResult
from cwm_connector.step.jobs import PromoteJob

logger = logging.getLogger(__name__)

COUNTED_AFTER_S: Final = 0.1
"""A thaw of a window in memory has been answered by then."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A window as a thaw reads it from the catalog."""

    row: WindowRow
    chunks: tuple[ChunkRow, ...]
    token_ids: "array[int]"


@dataclass(frozen=True, slots=True)
class _Checked:
    """How much of a window can be restored, from its beginning on."""

    blocks: int
    tokens_by_tier: dict[TierName, int]
    fault: str | None
    """Why the rest of the window can't be restored."""
    below_disk: tuple[ChunkKey, ...] = ()
    """Chunks that were read from a tier slower than the disk."""


class Thawer:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering
        self._prover = Prover(engine)
        self._background: set[asyncio.Task[object]] = set()

    async def thaw(self, args: ThawArgs, progress: ProgressSink) -> Thawed:
        """Make a window loadable for its session and for a new salt. With `prewarm`, read and verify its chunks first.

        A private window becomes loadable for the salt alone.
        Chunks that can't be verified are not an error. They end the part of the window that can be restored.
        Raises: `Code.SESSION_ID`, `Code.WINDOW_NAME`, `Code.WINDOW_NOT_FOUND`, `Code.PASSPORT`.
        """
        return await self._engine.observer.thaw(self._thaw(args, progress), args.window_name)

    async def _thaw(self, args: ThawArgs, progress: ProgressSink) -> Thawed:
        started = time.perf_counter()
        name = check_window_name(args.window_name)
        new_session_id = None if args.new_session_id is None else check_session_id(args.new_session_id)
        stored = await self._stored(name)
        await self._engine.known_passport()
        self._engine.require_same_passport(stored.row.passport, f"window {name!r}")
        specs = self._specs(stored)
        choice = self._engine.scheduler.load_choice
        end = specs[-1].end_block
        awake = not self._engine.scheduler.copy_gate.is_paused()
        prewarm = args.prewarm and awake and choice.end_of_load(specs, 0, end) == end
        checked = await self._prewarm(specs, progress) if prewarm else self._recorded(specs)
        read_s = time.perf_counter() - started
        slower = None if prewarm else choice.costs(specs, 0, end).computing_is_faster
        self._keep_warm(specs, checked)
        session_id = new_session_id or stored.row.session_id
        salt = f"cwm-{secrets.token_urlsafe(24)}"
        binding = Binding(window_name=name, session_id=session_id, salt_hash=salt_hash(salt), created_at=now_micros())
        await finish_even_if_cancelled(self._engine.catalog.run(lambda catalog: catalog.bind(binding)))
        self._bind(binding, stored, specs, checked.blocks)
        restorable = self._resumable(specs, checked.blocks) * self._engine.geometry.block_tokens
        full = stored.row.token_count - stored.row.token_count % self._engine.geometry.block_tokens
        fault = checked.fault
        if fault is None and restorable < full:
            fault = "an auto-freeze found the rest of the session evicted"
        outcome, check = await self._repeat(stored, specs, await self._proof_of(name)) if args.prove else (None, None)
        return Thawed(
            session_id=session_id,
            cache_salt=salt,
            window_name=name,
            token_count=stored.row.token_count,
            restorable_tokens=restorable,
            restored_by_tier={tier.value: tokens for tier, tokens in checked.tokens_by_tier.items()},
            restoration_time_ms=round((time.perf_counter() - started) * 1000, 3),
            partial=restorable < full,
            warning=_warning(stored.row, restorable, fault, new_session_id),
            recompute_is_faster=self._is_slower(read_s, restorable) if prewarm else slower,
            load=self._load_plan(specs, checked, stored.row.token_count),
            proof=outcome,
            proof_check=check,
        )

    async def warm(self, args: WarmArgs, progress: ProgressSink) -> Warmed:
        """Read and verify a window's chunks, so that the next thaw finds them in CPU memory. Nothing is bound by it.

        Raises: `Code.WINDOW_NAME`, `Code.WINDOW_NOT_FOUND`, `Code.PASSPORT`, `Code.STATE` for an engine that sleeps.
        """
        started = time.perf_counter()
        name = check_window_name(args.window_name)
        self._engine.scheduler.copy_gate.require_awake()
        stored = await self._stored(name)
        await self._engine.known_passport()
        self._engine.require_same_passport(stored.row.passport, f"window {name!r}")
        specs = self._specs(stored)
        checked = await self._promote(specs, progress)
        self._keep_warm(specs, checked)
        held = [spec for spec in specs if self._engine.locations.fastest(spec.key) is TierName.CPU]
        fault = checked.fault or (None if len(held) == len(specs) else "CPU memory is too small for the rest")
        return Warmed(
            window_name=name,
            token_count=stored.row.token_count,
            ready_tokens=sum(spec.blocks for spec in held) * self._engine.geometry.block_tokens,
            read_by_tier={tier.value: tokens for tier, tokens in checked.tokens_by_tier.items()},
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
            warning=fault,
        )

    async def prove(self, args: ProveArgs) -> Proved:
        """Repeat a window's proof. Nothing is bound by it, and the window's state does not change.

        Raises: `Code.WINDOW_NAME`, `Code.WINDOW_NOT_FOUND`, `Code.STATE` for a window without a proof, `Code.PASSPORT`.
        """
        started = time.perf_counter()
        name = check_window_name(args.window_name)
        stored = await self._stored(name)
        proof = await self._proof_of(name)
        if proof is None:
            raise CWMError(Code.STATE, UNPROVED, window_name=name)
        self._engine.require_same_passport(stored.row.passport, f"window {name!r}")
        outcome, check = await self._repeat(stored, self._specs(stored), proof)
        return Proved(
            window_name=name,
            token_count=stored.row.token_count,
            proof=outcome,
            proof_check=check,
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
        )

    async def clone(self, args: CloneArgs) -> Cloned:
        """Give a window's snapshot a second name. It takes one row and no bytes.

        Raises: `Code.WINDOW_NAME` and `Code.ARGUMENT` for names, `Code.WINDOW_NOT_FOUND`, `Code.WINDOW_EXISTS`.
        """
        source, target = check_window_name(args.source_window), check_window_name(args.target_window)
        description = None if args.description is None else check_description(args.description)
        tags = None if args.tags is None else check_tags(args.tags)
        row = await finish_even_if_cancelled(
            self._engine.catalog.run(
                lambda catalog: catalog.clone_window(source, target, description, tags, now_micros())
            )
        )
        return Cloned(source_window=source, target_window=target, shared_blocks=row.block_count, new_bytes=0)

    async def rebind(self) -> int:
        """Bind the thaws of before a restart again and return how many.

        A damaged window is left out, and so is one of another model, which stays bound in the catalog. The windows
        themselves are read when a request needs them.
        """
        bindings = await self._engine.catalog.run(lambda catalog: catalog.bindings())
        names = tuple(dict.fromkeys(binding.window_name for binding in bindings))
        rows = await self._engine.catalog.run(lambda catalog: _readable(catalog, names))
        fitting = {row.name: row for row in rows if self._engine.passport.first_difference(row.passport) is None}
        rebound = [binding for binding in bindings if binding.window_name in fitting]
        for binding in rebound:
            name = binding.window_name
            self._engine.thaw_bindings.bind_name(
                binding.session_id, binding.salt_hash, name, private=fitting[name].private
            )
        return len(rebound)

    # --- steps ---

    async def _proof_of(self, name: str) -> Proof | None:
        return await self._engine.catalog.run(lambda catalog: catalog.proof_of(name))

    async def _repeat(
        self, stored: _Stored, specs: Sequence[ChunkSpec], proof: Proof | None
    ) -> tuple[Outcome, ProofCheck]:
        extras = Passport(stored.row.passport).extras
        return await self._prover.repeat(stored.row.name, stored.token_ids, specs, proof, extras)

    async def _stored(self, name: str) -> _Stored:
        def read(catalog: Catalog) -> _Stored:
            tokens = array("i")
            tokens.frombytes(catalog.token_ids_of(name))
            chunks = catalog.chunks_of(name)
            self._engine.locations.load_from_catalog(chunks)
            return _Stored(catalog.window(name), chunks, tokens)

        return await self._engine.catalog.run(read)

    def _is_slower(self, read_s: float, tokens: int) -> bool | None:
        """Return whether the engine would have computed the tokens sooner. None if its prefill speed is unknown."""
        computing_s = self._engine.scheduler.prefill_speed.seconds_for(tokens)
        return computing_s < read_s if computing_s and tokens else None

    def _load_plan(self, specs: Sequence[ChunkSpec], checked: _Checked, tokens: int) -> LoadPlan:
        """Return what the next request loads, as far as the speeds and locations of now say."""
        choice = self._engine.scheduler.load_choice
        resumable = self._resumable(specs, checked.blocks)
        end = choice.end_of_load(specs, 0, resumable) if resumable else 0
        loaded = end * self._engine.geometry.block_tokens
        if end < resumable:
            because = "computing the rest is faster (CWM_LOAD=auto); it is right, but not bit-equal to the window"
        elif choice.policy is LoadPolicy.AUTO:
            because = "loading is faster, or a speed is not measured yet (CWM_LOAD=auto)"
        else:
            because = "CWM_LOAD=always"
        return LoadPlan(loaded=loaded, computed=tokens - loaded, because=because)

    def _resumable(self, specs: Sequence[ChunkSpec], blocks: int) -> int:
        """Return how many of the leading blocks of a window can be resumed after: up to a boundary, if it has any."""
        if not self._engine.geometry.groups:
            return blocks
        return max((end for end in boundaries_of(self._engine.geometry, specs) if end <= blocks), default=0)

    def _specs(self, stored: _Stored) -> tuple[ChunkSpec, ...]:
        return specs_of(
            self._engine.geometry, [row.key for row in stored.chunks], [row.tokens for row in stored.chunks]
        )

    async def _prewarm(self, specs: Sequence[ChunkSpec], progress: ProgressSink) -> _Checked:
        """Bring the chunks into CPU memory and return what could be verified.

        What is there already was verified when it came, so a window that is all there is not waited for.
        """
        recorded = self._recorded(specs)
        if recorded.fault is None and set(recorded.tokens_by_tier) == {TierName.CPU}:
            self._in_background(self._count_as_used(specs))
            return recorded
        return await self._promote(specs, progress)

    async def _count_as_used(self, specs: Sequence[ChunkSpec]) -> None:
        """Let the chunks be evicted last. That waits for the thaw's answer, whose time it would take.

        It reports no progress, because the call that it would report to has ended.
        """
        await asyncio.sleep(COUNTED_AFTER_S)
        await self._promote(specs, lambda *_: None)

    async def _promote(self, specs: Sequence[ChunkSpec], progress: ProgressSink) -> _Checked:
        board = self._engine.board

        def report_verified(done: int) -> None:
            progress(done, len(specs), "chunks read and verified")

        ticket = board.post(PromoteJob(board.next_id(), tuple(specs)), call_on_loop(report_verified))
        result = await self._engine.wait_for_workers(ticket.finished, PERSIST_STEP_S)
        checked = self._verified(specs, result)
        if checked.fault is None:
            # What was in memory already took no time.
            read = {tier: tokens for tier, tokens in checked.tokens_by_tier.items() if tier.is_durable}
            self._engine.scheduler.read_speed.measured(read, result.seconds)
        return checked

    def _verified(self, specs: Sequence[ChunkSpec], result: JobResult) -> _Checked:
        """Return what the workers could read and verify, up to the first failure."""
        tokens: dict[TierName, int] = {}
        below_disk: list[ChunkKey] = []
        for spec in specs:
            outcome = result.outcomes[spec.key]
            if outcome.failure is not None:
                code, reason = outcome.failure
                fault = f"CWM-{int(code)}: {reason}"
                return _Checked(
                    blocks=spec.usable_without, tokens_by_tier=tokens, fault=fault, below_disk=tuple(below_disk)
                )
            if outcome.tier is not None:
                tokens[outcome.tier] = tokens.get(outcome.tier, 0) + spec.blocks * self._engine.geometry.block_tokens
            if outcome.tier is not None and outcome.tier.is_slower_than(TierName.DISK):
                below_disk.append(spec.key)
        blocks = specs[-1].end_block
        return _Checked(blocks=blocks, tokens_by_tier=tokens, fault=None, below_disk=tuple(below_disk))

    def _recorded(self, specs: Sequence[ChunkSpec]) -> _Checked:
        """Return what the recorded locations promise. Nothing is read. Every load verifies what it reads."""
        tokens: dict[TierName, int] = {}
        for spec in specs:
            tier = self._engine.locations.fastest(spec.key)
            if tier is None:
                fault = "CWM-2003: no tier is known to have the next chunk"
                return _Checked(blocks=spec.usable_without, tokens_by_tier=tokens, fault=fault)
            tokens[tier] = tokens.get(tier, 0) + spec.blocks * self._engine.geometry.block_tokens
        return _Checked(blocks=specs[-1].end_block, tokens_by_tier=tokens, fault=None)

    def _keep_warm(self, specs: Sequence[ChunkSpec], checked: _Checked) -> None:
        """Count the window's chunks as used just now, and bring those from slower tiers back to the disk."""
        self._tiering.used(spec.key for spec in specs)
        if checked.below_disk:
            self._in_background(self._tiering.restore(checked.below_disk))

    def _in_background(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _bind(self, binding: Binding, stored: _Stored, specs: tuple[ChunkSpec, ...], blocks: int) -> None:
        window = BoundWindow(
            name=binding.window_name,
            token_ids=stored.token_ids,
            chunks=specs,
            usable_blocks=blocks,
            boundaries=boundaries_of(self._engine.geometry, specs),
            extras=Passport(stored.row.passport).extras,
        )
        self._engine.thaw_bindings.bind(binding.session_id, binding.salt_hash, window, private=stored.row.private)


def _readable(catalog: Catalog, names: Sequence[str]) -> list[WindowRow]:
    """Return the rows of the windows, without damaged ones."""
    rows = []
    for name in names:
        try:
            rows.append(catalog.window(name))
        except CWMError as problem:
            if problem.code is not Code.CORRUPT:
                raise
            logger.warning("the thaws of window %s can't be restored: %s", name, problem)
    return rows


def _warning(row: WindowRow, restorable: int, fault: str | None, new_session_id: str | None) -> str | None:
    """Return what a client should know of a thaw: what can't be restored, and whose session a clone was thawed into."""
    found = [f"the window will be computed again from token {restorable} on: {fault}"] if fault else []
    if row.cloned and new_session_id is None:
        found.append(
            f"session {row.session_id!r} is also that of the window that this one was cloned from; to keep the two "
            "conversations apart, thaw it into a session of its own (new_session_id, or cwm thaw --session)"
        )
    return "; ".join(found) or None
