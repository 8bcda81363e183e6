"""The messages that travel with vLLM's steps: jobs from the scheduler side to every worker, reports back.

Everything here is pickled, so it holds plain values only. A job is done when every rank has reported it finished. The
reports of one rank arrive in order, possibly over several steps.
"""

import enum
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, NewType, overload

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import ChunkKey, Claim, TierName
from cwm_connector.tiers.base import (
    ChunkId,
)

JobId = NewType("JobId", int)


class ClaimedChunk(NamedTuple):
    """A stored chunk and the claim that its bytes were written with."""

    key: ChunkKey
    claim: Claim


@dataclass(frozen=True, slots=True)
class ChunkBlocks:
    """The blocks of the GPU for blocks [first, first + len(block_ids)) of a chunk, as source or destination."""

    chunk: ChunkSpec
    block_ids: tuple[int, ...]
    first: int = 0


class ChunkRun(Sequence[ChunkBlocks]):
    """The parts of successive chunks that cover the blocks [from_block, to_block) of a request.

    Each part is made when it is read. A long run is therefore made and pickled in few operations.
    """

    __slots__ = ("_block_ids", "_from_block", "specs")

    def __init__(self, specs: Sequence[ChunkSpec], from_block: int, block_ids: Sequence[int]) -> None:
        """Take the chunks and the request's blocks from `from_block` on. Each chunk has at least one of them."""
        self.specs = specs
        self._from_block = from_block
        self._block_ids = block_ids

    def __len__(self) -> int:
        return len(self.specs)

    @overload
    def __getitem__(self, at: int) -> ChunkBlocks: ...

    @overload
    def __getitem__(self, at: slice) -> list[ChunkBlocks]: ...

    def __getitem__(self, at: int | slice) -> ChunkBlocks | list[ChunkBlocks]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        chunk = self.specs[at]
        start = max(chunk.first_block, self._from_block)
        ids = self._block_ids[start - self._from_block : chunk.end_block - self._from_block]
        return ChunkBlocks(chunk, tuple(ids), start - chunk.first_block)

    def __reduce__(self) -> tuple[Any, ...]:
        keys = b"".join(chunk.key for chunk in self.specs)
        blocks = array("i", [chunk.blocks for chunk in self.specs])
        first = self.specs[0].first_block if self.specs else 0
        return _unpickled, (keys, blocks, first, self._from_block, array("i", self._block_ids))

    def block_counts(self) -> list[int]:
        """Return how many blocks each part has."""
        counts = [chunk.blocks for chunk in self.specs]
        if counts:
            counts[0] -= self._from_block - self.specs[0].first_block
            counts[-1] -= self.specs[-1].end_block - self._from_block - len(self._block_ids)
        return counts


def _unpickled(keys: bytes, blocks: "array[int]", first: int, from_block: int, block_ids: "array[int]") -> ChunkRun:
    size = len(keys) // max(1, len(blocks))
    starts = accumulate(blocks, initial=first)
    specs = [
        ChunkSpec(ChunkKey(keys[at * size : (at + 1) * size]), start, count)
        for at, (start, count) in enumerate(zip(starts, blocks, strict=False))
    ]
    return ChunkRun(specs, from_block, block_ids)


@dataclass(frozen=True, slots=True)
class SaveJob:
    """Copy these whole chunks out of the cache and make them durable in every one of `tiers`.

    They are copied from the last to the first. The blocks of each stay pinned until `Report.captured` counts it.
    """

    id: JobId
    chunks: Sequence[ChunkBlocks]
    tiers: tuple[TierName, ...]
    claim: Claim
    asked_for: bool = True
    """False for an auto-freeze. It leaves chunks in CPU memory that somebody has used lately."""


@dataclass(frozen=True, slots=True)
class LoadJob:
    """Fill the blocks of a waiting request, in the order of its tokens.

    The chunks after the first failure count as failed.
    """

    id: JobId
    request_id: str
    chunks: Sequence[ChunkBlocks]


@dataclass(frozen=True, slots=True)
class PromoteJob:
    """Read chunks into CPU memory and verify them, first to last, as far as they fit. Report where each one is."""

    id: JobId
    chunks: tuple[ChunkSpec, ...]


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Copy all ranks' parts of these chunks into a durable tier and verify the copies there.

    Chunks of other models can be copied too, because their content is not interpreted.
    """

    id: JobId
    chunks: tuple[ClaimedChunk, ...]
    target: TierName


@dataclass(frozen=True, slots=True)
class VerifyJob:
    """Read and check all ranks' parts of these chunks in one tier. Nothing is changed."""

    id: JobId
    keys: tuple[ChunkKey, ...]
    tier: TierName
    together: bool = False
    """Read them at the same time, as a load does, and not one after the other."""


@dataclass(frozen=True, slots=True)
class DropJob:
    """Remove all ranks' parts of these chunks from these tiers."""

    id: JobId
    chunks: tuple[ClaimedChunk, ...]
    tiers: tuple[TierName, ...]


@dataclass(frozen=True, slots=True)
class FailedLoad:
    """A load that could not be planned. The workers report its blocks as bad, so that vLLM computes them."""

    id: JobId
    request_id: str
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CanaryJob:
    """Report the print of these blocks of each KV cache group. They stay pinned until every rank has reported it."""

    id: JobId
    groups: tuple[tuple[int, ...], ...]


Work = CanaryJob | SaveJob | LoadJob | FailedLoad | PromoteJob | CopyJob | VerifyJob | DropJob


@dataclass(frozen=True, slots=True)
class RollCall:
    """Report each of these jobs as failed unless it is under way. They were sent long ago and nobody reports them."""

    jobs: tuple[Work, ...]


Job = Work | RollCall


class Phase(enum.Enum):
    """How far one rank has got with a job."""

    RUNNING = enum.auto()
    """The job is under way. `Report.done` counts the chunks that are done, `Report.captured` those that are read."""
    CAPTURED = enum.auto()
    """A save has read all its blocks, so the last of them may be unpinned."""
    FINISHED = enum.auto()
    """The job is over. It succeeded unless `Report.failure` is set."""


@dataclass(frozen=True, slots=True)
class ChunkOutcome:
    """The result of a job for one chunk on one rank. `failure` is set if a load or a promotion failed."""

    key: ChunkKey
    tier: TierName | None
    size_bytes: int
    failure: tuple[Code, str] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The progress or the end of a job on one rank."""

    job: JobId
    rank: int
    phase: Phase
    done: int = 0
    """Chunks that this rank is done with."""
    outcomes: tuple[ChunkOutcome, ...] = ()
    failure: tuple[Code, str] | None = None
    seconds: float = 0.0
    captured: int = 0
    """Chunks, counted from the end of a save, whose blocks this rank has read."""
    canary: str = ""

    def error(self) -> CWMError | None:
        """Return the failure as an exception, or None if there was none."""
        return CWMError(*self.failure) if self.failure else None


@dataclass
class StepJobs(KVConnectorMetadata):
    """The jobs that the scheduler side sends to the workers, once a step."""

    jobs: list[Job] = field(default_factory=list)
    computes: bool = False
    """The step computes tokens."""


@dataclass
class StepReports(KVConnectorWorkerMetadata):
    """The reports that all workers together send to the scheduler side, once a step."""

    reports: list[Report] = field(default_factory=list)
    now_in_cpu: list[ChunkId] = field(default_factory=list)
    gone_from_cpu: list[ChunkId] = field(default_factory=list)
    bad_copies: list[tuple[ChunkKey, TierName]] = field(default_factory=list)
    """Copies in durable tiers that a load found missing or corrupt."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepReports":
        """Return the reports of this rank and of another one together. vLLM calls it."""
        assert isinstance(other, StepReports)
        return StepReports(
            self.reports + other.reports,
            self.now_in_cpu + other.now_in_cpu,
            self.gone_from_cpu + other.gone_from_cpu,
            self.bad_copies + other.bad_copies,
        )


@dataclass
class WorkerFacts(KVConnectorHandshakeMetadata):
    """The facts for the passport that only a worker knows. Sent once, after the KV cache is allocated."""

    rank: int
    layout: bytes
    attention_backend: str
    instruction_set: str
    group_bytes: tuple[int, ...] = ()
    """One of vLLM's blocks in all layers of each KV cache group."""
