"""The scheduler side: decide what a request can load and what a freeze must save, and count both.

Every method runs on the engine thread and only computes, so nothing here blocks. Other threads call in through the step
queue.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from cwm_connector import compat
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import Geometry
from cwm_connector.core.types import TierName
from cwm_connector.metrics import Metrics
from cwm_connector.sessions.index import SessionIndex
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.sessions.views import HeadSnapshot, SessionView
from cwm_connector.settings import LoadPolicy
from cwm_connector.step import surveys
from cwm_connector.step.boundaries.plan import BoundaryPlanner
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import CopyGate, JobBoard
from cwm_connector.step.jobs import StepJobs, StepReports
from cwm_connector.step.load_choice import LoadChoice
from cwm_connector.step.pinned_blocks import PinnedBlocks, PinnedSave
from cwm_connector.step.prefill_speed import PrefillSpeed
from cwm_connector.step.read_speed import ReadSpeed
from cwm_connector.step.request_loads import HasBlockIds, RequestLoads
from cwm_connector.step.save_plan import (
    Prefilled,
    ProofRequest,
    Recompute,
    Recomputed,
    SaveOrder,
    SavePlan,
    plan_save,
)
from cwm_connector.step.step_queue import IDLE_STEP_SHARE_S, STEP_SHARE_S, StepQueue
from cwm_connector.step.surveys import FreezableHead
from cwm_connector.step.window_matches import Match, WindowMatches, is_anonymous

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request


class SchedulerSide:
    """The scheduler side of one engine."""

    def __init__(
        self,
        geometry: Geometry,
        sessions: SessionIndex,
        window_matches: WindowMatches,
        board: JobBoard,
        step_queue: StepQueue,
        locations: ChunkLocations,
        metrics: Metrics,
        load_policy: LoadPolicy = LoadPolicy.ALWAYS,
        copy_gate: CopyGate | None = None,
        hash_tokens: int | None = None,
    ) -> None:
        self._geometry = geometry
        self._sessions = sessions
        self.window_matches = window_matches
        self._board = board
        self._step_queue = step_queue
        self._locations = locations
        self._metrics = metrics
        self.copy_gate = copy_gate or CopyGate(board, lambda: False)
        self.prefill_speed = PrefillSpeed()
        self.read_speed = ReadSpeed(metrics)
        self.load_choice = LoadChoice(load_policy, geometry, locations, self.prefill_speed, self.read_speed)
        self._hash_tokens = hash_tokens or geometry.block_tokens
        hashes_per_block = geometry.block_tokens // self._hash_tokens
        self._loads = RequestLoads(
            geometry, board, locations, metrics, self.load_choice, self.read_speed, hashes_per_block
        )
        self.computing_steps = 0
        """Steps that have computed tokens. Any thread may read it."""
        self._pool: BlockPool | None = None
        self._coordinator: KVCacheCoordinator | None = None
        self._unassigned: dict[str, Request] = {}
        """Requests without an id that wait for the finder, which may know the session that they continue."""
        self._recomputes: dict[str, Recompute] = {}
        self._proofs: dict[str, ProofRequest] = {}
        self._pinned = PinnedBlocks()

    # --- vLLM's hooks ---

    def bind_pool(self, pool: "BlockPool") -> None:
        """Take vLLM's block pool. Called once, before the first step."""
        self._pool = pool

    def bind_coordinator(self, coordinator: "KVCacheCoordinator") -> None:
        """Take what knows the prefix cache of every KV cache group. Called once, before the first step."""
        self._coordinator = coordinator

    def request_added(self, request: "Request") -> None:
        """Assign a new request to its session, unless it is one of our own, and look for its windows."""
        if (own := self._own(request.request_id)) is not None:
            own.request = request
            return
        self.expire_some()
        waits = self.window_matches.added(request, self._sessions.session_id_of(request))
        if waits and is_anonymous(request):
            self._unassigned[request.request_id] = request
        else:
            self._sessions.request_added(request)

    def matched_tokens(self, request: "Request", computed_tokens: int) -> int | None:
        """Return how many tokens after `computed_tokens` can be loaded, in whole blocks.

        At least one token is left for vLLM to compute. vLLM may ask several times before it allocates blocks. It has to
        ask again if the answer is None, because the windows of the request are still looked for or compared, or another
        request loads the same blocks.
        """
        request_id, size = request.request_id, self._geometry.block_tokens
        from_block = computed_tokens // size
        self._loads.asked(request_id)
        if self._own(request_id) is None and self.copy_gate.holds_loads():
            return None
        if self.window_matches.is_waiting(request, from_block):
            return None
        self._assign(request_id)
        if self.window_matches.is_comparing(request, self._sessions.session_id_of(request), from_block):
            return None
        if self._loads.is_waiting(request_id, from_block):
            return None
        blocks = self._loads.take_match(request, self._match(request, from_block))
        if blocks is None:
            return None
        if (recompute := self._recomputes.get(request_id)) is not None:
            recompute.computed_tokens = request.num_tokens - computed_tokens - blocks * size
        if (proof := self._proofs.get(request_id)) is not None:
            before = computed_tokens if proof.hit_tokens is None else proof.hit_tokens
            proof.hit_tokens = min(before, computed_tokens)
        return blocks * size

    def blocks_allocated(self, request: "Request", blocks: HasBlockIds, external_tokens: int) -> None:
        """Post the load of the last match. vLLM calls it again, without external tokens, when the load is done."""
        self._loads.blocks_allocated(request, blocks, external_tokens)

    def hit_sources(self, request: "Request") -> dict[TierName, int]:
        """Return the tokens of the load that was just posted, by the tier that holds them, and forget them."""
        return self._loads.hit_sources(request.request_id)

    def step_jobs(self, tokens: int = 0, position: int = 0) -> StepJobs:
        """Run the calls queued by other threads, then return this step's jobs for the workers.

        `tokens`: the tokens that the step computes. `position`: their mean position in their prompts.
        """
        self.computing_steps += tokens > 0
        self.prefill_speed.step_planned(tokens, position)
        self._sessions.pack()
        self._pinned.free_some()
        self._step_queue.drain(STEP_SHARE_S if tokens else IDLE_STEP_SHARE_S)
        return StepJobs(self._board.take(), computes=tokens > 0)

    def deliver(self, reports: StepReports) -> None:
        """Take in the workers' reports of a step."""
        self._locations.update(reports.now_in_cpu, reports.gone_from_cpu)
        for key, tier in reports.bad_copies:
            if self._locations.saw_bad(key, tier):
                self._metrics.tiers.bad_copies.labels(tier.value).inc()
        self._board.deliver(reports.reports)

    def request_finished(self, request: "Request") -> None:
        """Add the request's tokens to its session. Pin the blocks of a recompute of our own."""
        recompute = self._recomputes.pop(request.request_id, None)
        if recompute is not None:
            self._complete(recompute, request)  # first, because a freeze waits for it
        loaded_tokens = self._loads.finished(request.request_id)
        if (proof := self._proofs.pop(request.request_id, None)) is not None:
            if proof.done.set_running_or_notify_cancel():
                proof.done.set_result(Prefilled(proof.hit_tokens or 0, loaded_tokens))
            self.window_matches.finished(request.request_id)
            return
        self._assign(request.request_id)
        self.window_matches.finished(request.request_id)
        if recompute is None:
            self._sessions.request_finished(request)

    @property
    def is_answering(self) -> bool:
        """Return whether a session's request is being answered, so that steps take long. Any thread may ask."""
        return self._sessions.is_answering

    @property
    def wants_step(self) -> bool:
        """Return whether the engine has to make a step although no request needs one."""
        return self._step_queue.wants_step or self._pinned.is_freeing or not self._sessions.is_packed

    def frees_blocks_soon(self) -> bool:
        """Return whether a save is about to give blocks back to vLLM."""
        return self._pinned.frees_some_soon()

    # --- called through the step queue ---

    def snapshot(self, session_id: str, head: str | None) -> HeadSnapshot:
        """Return a head of a session at this instant. See `SessionIndex.snapshot`."""
        return self._sessions.snapshot(session_id, head)

    def session_views(self) -> Iterator[Sequence[tuple[SessionView, int]]]:
        """Yield the sessions, each with the number of its tokens that the prefix cache still has. See `surveys`."""
        return surveys.session_views(self._sessions, self._require_pool, self._cached_tokens)

    def freezable(self, near: float) -> Iterator[Sequence[FreezableHead]]:
        """Yield every head of at least one chunk that holds unfrozen tokens. See `surveys`."""
        return surveys.freezable(self._sessions, self._require_pool, near, self._last_blocks)

    def mark_frozen(self, snapshot: HeadSnapshot) -> Iterator[Sequence[str]]:
        """Record over several steps that a window holds the tokens of the snapshot. See `SessionIndex.mark_frozen`."""
        tokens, hashes = snapshot.token_ids, snapshot.block_hashes
        return self._sessions.mark_frozen(snapshot.session_id, tokens, hashes, snapshot.carried)

    def mark_covered(self, session_id: str, head: str, tokens: int) -> None:
        """Record that windows from before the start hold the first `tokens` of a head."""
        self._sessions.mark_covered(session_id, head, tokens)

    def unfrozen_tokens(self, session_id: str, head: str) -> int:
        """Return how many tokens of a head no window holds. 0 for a head that is not there."""
        return self._sessions.unfrozen_tokens(session_id, head)

    def protect_unfrozen(self, enabled: bool) -> None:
        """Set whether sessions and heads with unfrozen tokens are forgotten last, as auto-freeze needs it."""
        self._sessions.protect_unfrozen(enabled)

    def expire_some(self) -> None:
        """Drop the tokens of sessions that have expired. Each call looks at a few sessions."""
        pool = self._pool
        if pool is not None:
            group = self._geometry.group_of_pages(self._hash_tokens)
            self._sessions.expire(lambda block: compat.cached_blocks(pool, [block], group)[0] is not None)

    def plan_save(self, snapshot: HeadSnapshot, order: SaveOrder) -> Iterator[Sequence[SavePlan]]:
        """Pin the blocks of the order and post their save, over several steps. The last part is the plan.

        If some blocks are lost, nothing is saved and they are counted. See `save_plan`.
        """
        self.copy_gate.require_open()
        if self._geometry.groups:
            yield from self._planner().plan(self._pinned, self._board, snapshot.block_hashes, order)
        else:
            yield from plan_save(self._require_pool(), self._pinned, self._board, snapshot.block_hashes, order)

    def expect_recompute(self, request_id: str, loadable: BoundWindow) -> "Future[Recomputed]":
        """Register a recompute, a request of our own that the caller submits next.

        The request may load the window `loadable`. Return a future of its blocks, which are pinned when it finishes.
        The caller lets go of them, or cancels the future.
        """
        self._recomputes[request_id] = recompute = Recompute(loadable)
        return recompute.done

    def recomputed_tokens(self, request_id: str) -> int:
        """Return how many tokens of a recompute are there already, loaded or computed."""
        recompute = self._recomputes.get(request_id)
        return 0 if recompute is None or recompute.request is None else recompute.request.num_computed_tokens

    def expect_proof(self, request_id: str, loadable: BoundWindow) -> "Future[Prefilled]":
        """Register a request of our own for one token, which the caller submits next. It may load `loadable`.

        Return a future of where its tokens came from.
        """
        self._proofs[request_id] = proof = ProofRequest(loadable)
        return proof.done

    def forget_own(self, request_id: str) -> None:
        """Forget a request of our own that could not be submitted. The end of any other one does that."""
        self._proofs.pop(request_id, None)
        self._recomputes.pop(request_id, None)

    # --- internal ---

    def _own(self, request_id: str) -> Recompute | ProofRequest | None:
        return self._recomputes.get(request_id) or self._proofs.get(request_id)

    def _assign(self, request_id: str) -> None:
        """Assign a request that has waited for the finder to its session."""
        request = self._unassigned.pop(request_id, None)
        if request is not None:
            self._sessions.request_added(request)

    def _complete(self, recompute: Recompute, request: "Request") -> None:
        """Pin the blocks of a recompute and hand them to its freeze."""
        if not recompute.done.set_running_or_notify_cancel():
            return
        try:
            # The request still holds its blocks now. A moment later they could be evicted again.
            recompute.done.set_result(Recomputed(*self._pin(request), recompute.computed_tokens))
        except Exception as problem:
            recompute.done.set_exception(problem)

    def _pin(self, request: "Request") -> tuple[PinnedSave, tuple[int, ...]]:
        """Pin the blocks of a request. Return them, and how many each group has."""
        if self._geometry.groups:
            return self._planner().pin_prompt(self._pinned, request)
        pool = self._require_pool()
        found = [[block] for block in compat.cached_blocks(pool, request.block_hashes) if block is not None]
        return self._pinned.pin(pool, found), (len(found),)

    def _cached_tokens(self, hashes: Sequence[bytes]) -> int:
        """Return how many of the tokens with these hashes vLLM need not compute again."""
        if self._geometry.groups:
            return self._planner().boundary(hashes).tokens
        return self._geometry.block_tokens * surveys.cached_blocks(self._require_pool(), hashes)

    def _last_blocks(self, hashes: Sequence[bytes]) -> "Sequence[KVCacheBlock]":
        """Return the cached blocks without which vLLM could not resume these tokens, as far as it evicts them first."""
        if self._geometry.groups:
            return self._planner().last_blocks(hashes)
        (last,) = compat.cached_blocks(self._require_pool(), hashes[-1:])
        return () if last is None else (last,)

    def _planner(self) -> BoundaryPlanner:
        if self._coordinator is None:
            raise _starting()
        return BoundaryPlanner(self._geometry, self._hash_tokens, self._require_pool(), self._coordinator)

    def _match(self, request: "Request", from_block: int) -> Match | None:
        if self.copy_gate.is_closed or not self._loads.may_load(request.request_id):
            return None
        own = self._own(request.request_id)
        if own is None and not self.copy_gate.may_load():
            return None
        if own is None:
            best = self.window_matches.best(request, self._sessions.session_id_of(request), from_block)
            return self._loads.choose(request.request_id, best)
        # The window has the tokens of the request.
        limit = (request.num_tokens - 1) // self._geometry.block_tokens
        to_block = own.loadable.loadable(limit)
        return Match(own.loadable, from_block, to_block, automatic=False) if to_block > from_block else None

    def _require_pool(self) -> "BlockPool":
        if self._pool is None:
            raise _starting()
        return self._pool


def _starting() -> CWMError:
    return CWMError(Code.STATE, "the engine is still starting and has no block pool yet; try again in a moment")
