"""What travels with vLLM's steps: jobs from the scheduler side to every worker, and the workers' reports back.

Everything here is pickled. A job is done when every rank has reported it finished; the reports of one rank come in
order, possibly over several steps.
"""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple, NewType

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
    """Blocks of the GPU that hold, or shall hold, blocks [first, first + len(block_ids)) of a chunk."""

    chunk: ChunkSpec
    block_ids: tuple[int, ...]
    first: int = 0


@dataclass(frozen=True, slots=True)
class SaveJob:
    """Copy these whole chunks out of the cache, make them durable in every one of `tiers`.

    The blocks are held until `CAPTURED`.
    """

    id: JobId
    chunks: tuple[ChunkBlocks, ...]
    tiers: tuple[TierName, ...]
    claim: Claim


@dataclass(frozen=True, slots=True)
class LoadJob:
    """Fill a waiting request's blocks, in the order of its tokens; what follows the first failure counts as failed."""

    id: JobId
    request_id: str
    chunks: tuple[ChunkBlocks, ...]


@dataclass(frozen=True, slots=True)
class PromoteJob:
    """Read and verify chunks into CPU memory, first to last, as far as they fit; tell where each one is."""

    id: JobId
    chunks: tuple[ChunkSpec, ...]


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Bring good copies of these chunks into a durable tier and show that they are good there, all ranks' parts.

    A chunk of another model is as good as one's own here: nothing of it is interpreted.
    """

    id: JobId
    chunks: tuple[ClaimedChunk, ...]
    target: TierName


@dataclass(frozen=True, slots=True)
class VerifyJob:
    """Read and check what one tier holds of these chunks, all ranks' parts; nothing is changed."""

    id: JobId
    keys: tuple[ChunkKey, ...]
    tier: TierName


@dataclass(frozen=True, slots=True)
class DropJob:
    """Remove chunks, all ranks' parts, from these tiers."""

    id: JobId
    chunks: tuple[ClaimedChunk, ...]
    tiers: tuple[TierName, ...]


Job = SaveJob | LoadJob | PromoteJob | CopyJob | VerifyJob | DropJob


class Phase(enum.Enum):
    RUNNING = enum.auto()
    """Some way on; `done` counts chunks."""
    CAPTURED = enum.auto()
    """A save has read all its blocks."""
    FINISHED = enum.auto()
    """Nothing of the job is left to do; it succeeded unless `failure` says otherwise."""


@dataclass(frozen=True, slots=True)
class ChunkOutcome:
    """What one rank did with, or knows of, one chunk. A load or promotion that failed has a `failure`."""

    key: ChunkKey
    tier: TierName | None
    size_bytes: int
    failure: tuple[Code, str] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    job: JobId
    rank: int
    phase: Phase
    done: int = 0
    outcomes: tuple[ChunkOutcome, ...] = ()
    failure: tuple[Code, str] | None = None
    seconds: float = 0.0

    def error(self) -> CWMError | None:
        return CWMError(*self.failure) if self.failure else None


@dataclass
class StepJobs(KVConnectorMetadata):
    """Scheduler side -> workers, once a step."""

    jobs: list[Job] = field(default_factory=list)


@dataclass
class StepReports(KVConnectorWorkerMetadata):
    """Workers -> scheduler side, once a step, all ranks' put together."""

    reports: list[Report] = field(default_factory=list)
    now_in_cpu: list[ChunkId] = field(default_factory=list)
    gone_from_cpu: list[ChunkId] = field(default_factory=list)
    bad_copies: list[tuple[ChunkKey, TierName]] = field(default_factory=list)
    """Copies in durable tiers that a load found missing or corrupt."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepReports":
        assert isinstance(other, StepReports)
        return StepReports(
            self.reports + other.reports,
            self.now_in_cpu + other.now_in_cpu,
            self.gone_from_cpu + other.gone_from_cpu,
            self.bad_copies + other.bad_copies,
        )


@dataclass
class WorkerFacts(KVConnectorHandshakeMetadata):
    """What only a worker knows and the scheduler side needs, told once after the KV cache is allocated."""

    rank: int
    layout: bytes
    attention_backend: str
    instruction_set: str
