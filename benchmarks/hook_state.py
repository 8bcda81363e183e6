"""The state of an engine in which its hooks are measured, and requests that are expensive for them."""

import itertools
import os
from array import array
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from vllm import SamplingParams
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.request import Request

from cwm_connector.core.errors import Code
from cwm_connector.core.identity import Geometry, Passport, chunk_specs
from cwm_connector.core.types import NO_CLAIM, TierName, salt_hash
from cwm_connector.metrics import Metrics
from cwm_connector.operations.thaw.beginnings import Beginnings
from cwm_connector.sessions.index import SessionIndex
from cwm_connector.sessions.thaw_bindings import MAX_BOUND, BoundWindow, ThawBindings
from cwm_connector.sessions.unnamed import MAX_ALIKE
from cwm_connector.sessions.views import SessionView
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import JobBoard
from cwm_connector.step.jobs import ChunkOutcome, Job, LoadJob, Phase, Report, SaveJob, StepReports
from cwm_connector.step.save_plan import SaveOrder, SavePlan
from cwm_connector.step.scheduler import SchedulerSide
from cwm_connector.step.step_queue import StepQueue
from cwm_connector.step.surveys import FreezableHead
from cwm_connector.step.window_matches import FoundWindows, WindowMatches, WindowQuestion
from tests.support.vllm_parts import BLOCK_TOKENS, compute, new_pool

GEOMETRY: Final = Geometry.of(BLOCK_TOKENS, 256)
PASSPORT: Final = Passport({"weights": "benchmark"})
POOL_BLOCKS: Final = 65_536
"""A million tokens of KV cache."""
INDEX_BYTES: Final = 4 << 30
"""Enough for all sessions. The default limit keeps 320 of them, which would be less work."""
BRANCHES: Final = 100
BRANCH_TOKENS: Final = 100_000
ALIKE_TOKENS: Final = 4096
"""What the anonymous conversations have in common, whole blocks."""
FIRST_WORD: Final = 300
"""Smaller numbers are objects that Python shares, which would make copies cheaper than they are."""


def hash_blocks(request: Request) -> list[BlockHash]:
    """Return hashes of the blocks that have none yet, each for all blocks up to its own.

    vLLM's own function takes seven times as long, which would be most of the benchmark's time.
    """
    known, tokens = request.block_hashes, request._all_token_ids
    last = int.from_bytes(known[-1][:8], "big", signed=True) if known else 0
    hashes = []
    for start in range(len(known) * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        last = hash((last, *tokens[start : start + BLOCK_TOKENS]))
        hashes.append(BlockHash(last.to_bytes(8, "big", signed=True) * 4))
    return hashes


def other_hashes(blocks: int) -> list[BlockHash]:
    """Return hashes of tokens that nobody else has."""
    joined = os.urandom(32 * blocks)
    return [BlockHash(joined[start : start + 32]) for start in range(0, len(joined), 32)]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much the engine has to do with."""

    sessions: int = 1000
    tokens: int = 131_072
    windows: int = 64


@dataclass(frozen=True)
class _Blocks:
    ids: list[int]

    def get_block_ids(self) -> tuple[list[int], ...]:
        return (self.ids,)


class _Finder:
    """Looks at the first chunks as the engine's own finder does. Its catalog answers when `answer` is called."""

    def __init__(self) -> None:
        self.beginnings = Beginnings(lambda: PASSPORT, GEOMETRY)
        self._asked: list[Future[FoundWindows]] = []

    def ask(self, question: WindowQuestion) -> "Future[FoundWindows] | None":
        """Take the question if a window was thawed for it or begins as it does."""
        if not question.thawed and next(self.beginnings.of(question.token_ids, question.max_blocks), None) is None:
            return None
        answer: Future[FoundWindows] = Future()
        self._asked.append(answer)
        return answer

    def answer(self) -> None:
        """Answer all questions: the catalog has found nothing more."""
        for answer in self._asked:
            if answer.set_running_or_notify_cancel():
                answer.set_result(FoundWindows())
        self._asked.clear()


class EngineState:
    """One scheduler side with its neighbours."""

    thawed_session: Final = "thawed"

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.pool = new_pool(POOL_BLOCKS)
        self.bindings = ThawBindings()
        self.board = JobBoard(world_size=1)
        self.locations = ChunkLocations(world_size=1)
        self.queue = StepQueue(lambda: None)
        self._finder = _Finder()
        matches = WindowMatches(GEOMETRY, self.bindings)
        matches.finder = self._finder
        self.sessions = SessionIndex(
            "m",
            BLOCK_TOKENS,
            self.bindings.thawed_into,
            lambda tokens, notify: None,
            continued=matches.continued,
            max_bytes=INDEX_BYTES,
            resumes=self.bindings.resumes,
        )
        self.side = SchedulerSide(GEOMETRY, self.sessions, matches, self.board, self.queue, self.locations, Metrics())
        self.side.bind_pool(self.pool)
        self._numbers = itertools.count()
        self._sent: list[Job] = []
        self.said = self.prompt()
        self.alike = self.prompt(ALIKE_TOKENS)
        self._base = self.prompt(BRANCH_TOKENS)
        self._cuts = itertools.cycle(range(3000, BRANCH_TOKENS - 3000, 611))
        self._fill()
        self.thawed_tokens = self._thaw()
        self.waiting = self.request([*self.thawed_tokens, *self.prompt(1000)], self.thawed_session)
        self.side.request_added(self.waiting)
        self.answer_finder()
        while self.side.matched_tokens(self.waiting, 0) is None:
            pass

    # --- requests ---

    def prompt(self, tokens: int | None = None) -> list[int]:
        """Return tokens with which no other prompt begins."""
        count = tokens or self.sizes.tokens
        first = FIRST_WORD + next(self._numbers) * 1009
        return list(range(first, first + count))

    def branch(self) -> list[int]:
        """Return a prompt that leaves the session `branches` somewhere and is as long as its other heads."""
        kept = next(self._cuts)
        return [*self._base[:kept], *self.prompt(BRANCH_TOKENS - kept)]

    def request(self, tokens: list[int], session: str | None) -> Request:
        """Return vLLM's own request, as it is when it was just added."""
        return Request(
            request_id=f"r{next(self._numbers)}",
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(max_tokens=4),
            pooling_params=None,
            block_hasher=hash_blocks,
            session_id=session,
        )

    def computed(self, tokens: list[int], session: str | None) -> Request:
        """Return a running request whose prompt is computed."""
        one = self.request(tokens, session)
        self.side.request_added(one)
        one.num_computed_tokens = one.num_tokens
        return one

    def new_name(self, kind: str) -> str:
        """Return a session id that was not used yet."""
        return f"{kind}-{next(self._numbers)}"

    def drop(self, one: Request) -> None:
        """End a request that has left nothing to keep."""
        one.num_computed_tokens = 0
        self.side.request_finished(one)
        self.forget(one)

    def forget(self, one: Request) -> None:
        """Remove the session of a request again, if it was made for it."""
        self.settle()
        name = one.session_id or next(reversed(self.sessions._sessions), "")
        if name.startswith(("new-", "anon-")):
            self.sessions._drop(name)

    def settle(self) -> None:
        """Make steps until nothing is left to do."""
        while self.side.wants_step:
            self.step()

    def step(self) -> None:
        """Make a step, and keep the jobs that it sends to the workers."""
        self._sent += self.side.step_jobs().jobs

    # --- the other threads and the workers ---

    def list_sessions(self) -> "Future[list[tuple[SessionView, int]]]":
        """Start to list the sessions."""
        return self.queue.collect(self.side.session_views())

    def look_for_unfrozen(self) -> "Future[list[FreezableHead]]":
        """Start to look for what auto-freeze may freeze."""
        return self.queue.collect(self.side.freezable(0.25))

    def answer_finder(self) -> None:
        """Let the finder answer."""
        self._finder.answer()

    def blocks_for(self, one: Request) -> _Blocks:
        """Return blocks for all tokens of the request."""
        return _Blocks(list(range(one.num_tokens // BLOCK_TOKENS + 1)))

    def plan_freeze(self) -> "Future[list[SavePlan]]":
        """Start to plan the save of a session of which vLLM's cache has every block."""
        name = f"s{self.sizes.sessions - 1}"
        snapshot = self.side.snapshot(name, None)
        order = SaveOrder(chunk_specs(PASSPORT, GEOMETRY, snapshot.token_ids), (TierName.DISK,), NO_CLAIM)
        return self.queue.collect(self.side.plan_save(snapshot, order))

    def save_reports(self, phase: Phase) -> StepReports:
        """Return the workers' reports that the saves have come so far."""
        saves = [job for job in self._sent if isinstance(job, SaveJob)]
        if phase is Phase.FINISHED:
            self._sent.clear()
        outcomes = {
            job.id: tuple(ChunkOutcome(part.chunk.key, TierName.DISK, 1) for part in job.chunks) for job in saves
        }
        return StepReports(
            [Report(job.id, 0, phase, outcomes=outcomes[job.id] if phase is Phase.FINISHED else ()) for job in saves]
        )

    def fail_loads(self) -> StepReports:
        """Return the workers' reports that all loads have failed."""
        jobs = self._loads()
        return StepReports(
            [Report(job.id, 0, Phase.FINISHED, failure=(Code.ENGINE_TIMEOUT, "the disk is slow")) for job in jobs]
        )

    def finish_loads(self) -> StepReports:
        """Return the workers' reports that all loads have ended well."""
        jobs = self._loads()
        return StepReports(
            [
                Report(
                    job=job.id,
                    rank=0,
                    phase=Phase.FINISHED,
                    outcomes=tuple(ChunkOutcome(part.chunk.key, TierName.CPU, 1) for part in job.chunks),
                )
                for job in jobs
            ]
        )

    # --- internal ---

    def _loads(self) -> list[LoadJob]:
        """Take the loads that were posted."""
        self.step()
        loads = [job for job in self._sent if isinstance(job, LoadJob)]
        self._sent.clear()
        return loads

    def _fill(self) -> None:
        self._fill_sessions()
        for _ in range(MAX_ALIKE):
            self._serve([*self.alike, *self.prompt(BLOCK_TOKENS - 4)], None)
        self._serve(self.said, "speaks")
        for _ in range(BRANCHES):
            self._serve(self.branch(), "branches")

    def _fill_sessions(self) -> None:
        """Serve a long request in each session.

        Their tokens are the same and their hashes are not. No hook compares the tokens of two sessions, and it saves
        most of the time that requests take to make.
        """
        tokens = self.prompt()
        blocks = self.sizes.tokens // BLOCK_TOKENS
        kept_by_cache = POOL_BLOCKS // blocks
        for number in range(self.sizes.sessions):
            one = Request(f"f{number}", tokens, SamplingParams(max_tokens=4), None, session_id=f"s{number}")
            one.block_hashes = other_hashes(blocks)
            self._end(one, cached=number >= self.sizes.sessions - kept_by_cache)

    def _serve(self, tokens: list[int], session: str | None) -> None:
        self._end(self.request(tokens, session), cached=False)

    def _end(self, one: Request, *, cached: bool) -> None:
        self.side.request_added(one)
        one.num_computed_tokens = one.num_tokens
        blocks = compute(self.pool, one) if cached else []
        self.side.request_finished(one)
        self.pool.free_blocks(reversed(blocks))
        self.settle()

    def _thaw(self) -> list[int]:
        """Thaw windows that begin alike and go on differently. Return the tokens of the one that is loaded."""
        stem = self.prompt(self.sizes.tokens // 2)
        token_ids = stem
        for number in range(self.sizes.windows):
            token_ids = [*stem, *self.prompt(self.sizes.tokens // 2)]
            packed = array("i", token_ids)
            specs = chunk_specs(PASSPORT, GEOMETRY, packed)
            session = self.thawed_session if number >= self.sizes.windows - MAX_BOUND else f"other-{number}"
            window = BoundWindow(f"w{number}", packed, specs, len(token_ids) // BLOCK_TOKENS)
            self.bindings.bind(session, salt_hash(f"salt-{number}"), window)
            self._finder.beginnings.add(specs[0].key, specs[0].blocks * BLOCK_TOKENS)
        return token_ids
