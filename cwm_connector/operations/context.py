"""EngineContext: what every operation works with, and how it waits for the engine thread and the workers.

Control thread. Nothing here blocks its event loop.
"""

import asyncio
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeVar

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.catalog.thread import CatalogThread
from cwm_connector.compat import FirstToken
from cwm_connector.control.async_helpers import wait_done
from cwm_connector.control.step_poll import StepPoll
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.groups import HeadShape
from cwm_connector.core.identity import ChunkSpec, Geometry, Passport
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.metrics import Metrics
from cwm_connector.operations.claims import Claims
from cwm_connector.operations.freeze.under_way import FreezesUnderWay
from cwm_connector.operations.observation.observer import Observer
from cwm_connector.operations.passport.current import CurrentPassport
from cwm_connector.sessions.extras.adapters import Adapters
from cwm_connector.sessions.thaw_bindings import ThawBindings
from cwm_connector.settings import Settings
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import JobBoard, JobResult
from cwm_connector.step.jobs import ClaimedChunk, CopyJob, DropJob, VerifyJob, Work
from cwm_connector.step.scheduler import SchedulerSide
from cwm_connector.step.step_queue import StepQueue
from cwm_connector.tiers.base import DurableTier
from cwm_connector.tiers.chunk import sealed_bytes

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

T = TypeVar("T")
SubmitPrefill = Callable[[str, "memoryview[int]", str | None, "LoRARequest | None"], None]
"""(request id, token ids, cache salt, adapter): has the engine compute the tokens. See compat.submit_prefill."""
SubmitProof = Callable[[str, "memoryview[int]", str | None, "LoRARequest | None"], "Future[FirstToken]"]
"""(request id, token ids, cache salt, adapter): has the engine compute one greedy token. See FirstTokens."""
AbortRequest = Callable[[str], None]
"""(request id): has the engine end a request that was submitted so. See compat.abort_request."""
PERSIST_STEP_S: Final = 0.01
"""Between two engine steps while an operation waits for a job of the workers."""
ENGINE_STEP_LIMIT_S: Final = 120.0
"""An engine that takes no step for this long is reported as busy (`Code.ENGINE_TIMEOUT`)."""


@dataclass(frozen=True)
class EngineContext:
    """One engine as the control thread sees it."""

    settings: Settings
    model: str
    passports: CurrentPassport
    canary_tokens: "array[int]"
    geometry: Geometry
    group_bytes: tuple[int, ...]
    """One of vLLM's blocks over all layers of each KV cache group, on one rank."""
    heads: HeadShape | str
    """How attention's heads lie in a rank's pages, or why they can't be divided over other ranks."""
    rank_layouts: tuple[bytes, ...]
    """The fingerprint of each rank's pages. Empty for an engine without workers of its own."""
    hash_tokens: int
    """Tokens that each of a request's block hashes covers."""
    world_size: int
    catalog: CatalogThread
    scheduler: SchedulerSide
    step_queue: StepQueue
    board: JobBoard
    locations: ChunkLocations
    thaw_bindings: ThawBindings
    adapters: Adapters
    metrics: Metrics
    observer: Observer
    submit_prefill: SubmitPrefill
    submit_proof: SubmitProof
    abort_request: AbortRequest
    durable_tiers: Mapping[TierName, DurableTier]
    """As this process sees them, for maintenance that needs no worker. Fastest first."""
    claims: Claims
    freezes: FreezesUnderWay = field(default_factory=FreezesUnderWay)
    uncompared: set[TierName] = field(default_factory=set)
    """Tiers that were not compared with the catalog since the start. See home_check.py."""
    chunk_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held to write, move or remove chunks, so that no operation drops a chunk that another has decided to refer to."""

    @cached_property
    def _step_poll(self) -> StepPoll:
        return StepPoll(self.step_queue.nudge)

    @property
    def passport(self) -> Passport:
        """Return the passport of now, be it complete or not. What is stored under it waits for `passports.known`."""
        return self.passports.current

    @property
    def freeze_tiers(self) -> tuple[TierName, ...]:
        """Return the tiers in which a chunk must be durable before its freeze is acknowledged."""
        fastest = next(iter(self.durable_tiers))
        return (fastest, *(tier for tier in self.shared_tiers if tier is not fastest))

    @property
    def shared_tiers(self) -> tuple[TierName, ...]:
        """Return the tiers whose bytes other engines use as well; none unless the catalog is shared."""
        return tuple(name for name, tier in self.durable_tiers.items() if tier.shared)

    def payload_bytes(self, chunk: ChunkSpec) -> int:
        """Return the bytes of the chunk's pages on one rank."""
        return chunk.page_count * self.group_bytes[chunk.group]

    def stored_bytes(self, chunk: ChunkSpec) -> int:
        """Return the bytes that a chunk takes on disk, over all ranks."""
        return sealed_bytes(self.payload_bytes(chunk)) * self.world_size

    async def known_passport(self) -> Passport:
        """Return the passport once it is complete. Raises: `Code.STATE` if it can't be soon. See CurrentPassport."""
        if not self.passports.is_known:
            self.scheduler.copy_gate.require_awake()
        return await self.passports.known()

    def require_same_passport(self, passport: Mapping[str, str], what: str) -> None:
        """Raise `Code.PASSPORT` with the first field that differs. `what` is the subject of the sentence."""
        difference = self.passport.first_difference(passport)
        if difference is not None:
            field, ours, theirs = difference
            raise passport_mismatch(what, field, ours, theirs)

    async def on_engine_thread(self, function: Callable[[SchedulerSide], T]) -> T:
        """Run `function` on the engine thread in its next step and return its result. `function` must not block.

        Raises: `Code.ENGINE_TIMEOUT` if the engine takes no step in time.
        """
        answer = self.step_queue.call(lambda: function(self.scheduler))
        if not await wait_done(answer, ENGINE_STEP_LIMIT_S) and answer.cancel():
            raise CWMError(Code.ENGINE_TIMEOUT, "the engine is busy and took no step; try again later")
        return answer.result()  # a function that has begun ends within the step

    async def collect(self, parts: Iterator[Sequence[T]]) -> list[T]:
        """Take all parts on the engine thread, over several steps, and return their items. See `StepQueue.collect`.

        Raises: `Code.ENGINE_TIMEOUT` if the engine takes too few steps in time.
        """
        answer = self.step_queue.collect(parts)
        done = await wait_done(answer, ENGINE_STEP_LIMIT_S)
        if not done and (answer.cancel() or not await wait_done(answer, ENGINE_STEP_LIMIT_S)):
            raise CWMError(Code.ENGINE_TIMEOUT, "the engine is busy and takes few steps; try again later")
        return answer.result()

    async def wait_for_workers(self, future: "Future[T]", every_s: float) -> T:
        """Wait for a future that a worker's report completes, and return its result. See `workers_done`."""
        await self.workers_done(future, every_s)
        return future.result()

    async def workers_done(self, future: "Future[T]", every_s: float) -> None:
        """Wait until a worker's report has completed the future, with an engine step every `every_s` at least."""
        await self._step_poll.until_done(future, every_s)

    async def copy(self, rows: Iterable[ChunkRow], target: TierName) -> JobResult:
        """Have the workers put good copies into `target`. See CopyJob."""
        return await self._run(CopyJob(self.board.next_id(), claimed(rows), target))

    async def verify(self, keys: Iterable[ChunkKey], tier: TierName, *, together: bool = False) -> JobResult:
        """Have the workers read and check these chunks in `tier`. See VerifyJob."""
        return await self._run(VerifyJob(self.board.next_id(), tuple(keys), tier, together))

    async def drop(self, chunks: Iterable[ClaimedChunk], tiers: Iterable[TierName]) -> JobResult:
        """Have the workers remove chunks from `tiers`. The sizes of the outcomes are the bytes that became free."""
        return await self._run(DropJob(self.board.next_id(), tuple(chunks), tuple(tiers)))

    async def _run(self, job: Work) -> JobResult:
        return await self.wait_for_workers(self.board.post(job).finished, PERSIST_STEP_S)


def claimed(rows: Iterable[ChunkRow]) -> tuple[ClaimedChunk, ...]:
    """Return the rows' chunks with the claims that keep them."""
    return tuple(ClaimedChunk(row.key, row.claim) for row in rows)


def passport_mismatch(what: str, field: str, ours: str, theirs: str) -> CWMError:
    """Return the refusal of KV that was computed by another model or engine than this one."""
    return CWMError(
        Code.PASSPORT,
        f"{what} has {field} {theirs!r} and this engine {ours!r}; use an engine that serves the model as it was frozen",
        field=field,
        engine=ours,
        window=theirs,
    )
