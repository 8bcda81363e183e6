"""What a worker side has to tell, until vLLM's next step takes it, and which jobs it still has to report.

Any thread. One lock, held for moments, so that vLLM's hooks never wait.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.step.jobs import JobId, Phase, Report, StepReports
from cwm_connector.tiers.base import ChunkId
from cwm_connector.worker.fence import Fence

ENDED_KEPT: Final = 4096
"""The newest jobs that have ended. Older ones are not asked about any more."""


@dataclass(slots=True)
class LoadsOver:
    """The requests that vLLM may run again."""

    loaded: set[str] = field(default_factory=set)
    """Those whose load has ended, in success or failure, or needs nothing more than the last copies."""
    failed: set[str] = field(default_factory=set)
    """Those that could not be given all that they wait for."""
    last_copies: list[Fence] = field(default_factory=list)
    """The model has to wait for these before it runs any of the requests."""


class Outbox:
    """Reports in the order in which they were made, and the requests whose loads are over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news = StepReports()
        self._bad_copies: set[tuple[ChunkKey, TierName]] = set()
        self._loads = LoadsOver()
        self._bad_blocks: set[int] = set()
        self._under_way: set[JobId] = set()
        self._ended: dict[JobId, None] = {}

    def began(self, job: JobId) -> None:
        """Note that a job was taken over. It is under way until it is reported as finished."""
        with self._lock:
            self._under_way.add(job)

    def is_under_way(self, job: JobId) -> bool:
        """Return whether the job was taken over and is not finished."""
        with self._lock:
            return job in self._under_way

    def has_ended(self, job: JobId) -> bool:
        """Return whether the job was reported as finished."""
        with self._lock:
            return job in self._ended

    def report(self, report: Report) -> None:
        """Add a report of a job."""
        with self._lock:
            self._add(report)

    def entered_memory(self, chunks: Iterable[ChunkId]) -> None:
        """Note that chunks are in CPU memory now."""
        with self._lock:
            self._news.now_in_cpu.extend(chunks)

    def left_memory(self, chunks: Iterable[ChunkId]) -> None:
        """Note that chunks are not in CPU memory any more."""
        with self._lock:
            self._news.gone_from_cpu.extend(chunks)

    def saw_bad_copy(self, key: ChunkKey, tier: TierName) -> None:
        """Note that a copy is missing or corrupt."""
        with self._lock:
            self._bad_copies.add((key, tier))

    def all_queued(self, request_id: str, last_copies: Fence) -> None:
        """Add a request whose chunks have all passed their checks. Their last copies are queued."""
        with self._lock:
            self._loads.loaded.add(request_id)
            self._loads.last_copies.append(last_copies)

    def loaded(self, request_id: str, bad_blocks: Iterable[int], report: Report, *, failed: bool) -> None:
        """Add the end of a request's load, with the blocks that could not be filled. `failed`: not all of it was."""
        with self._lock:
            self._add(report)
            if failed:
                self._loads.failed.add(request_id)
            self._bad_blocks.update(bad_blocks)
            self._loads.loaded.add(request_id)

    def take_loads(self) -> LoadsOver:
        """Return the requests that vLLM may run again since the last call."""
        with self._lock:
            loads, self._loads = self._loads, LoadsOver()
        return loads

    def take_bad_blocks(self) -> set[int]:
        """Return the blocks whose load has failed since the last call."""
        with self._lock:
            bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def take_reports(self, evicted: list[ChunkId]) -> StepReports | None:
        """Return the news since the last call, with chunks that were evicted from CPU memory; None if there is none."""
        with self._lock:
            news, self._news = self._news, StepReports()
            bad, self._bad_copies = self._bad_copies, set()
        if not (news.reports or news.now_in_cpu or news.gone_from_cpu or evicted or bad):
            return None
        return replace(news, gone_from_cpu=news.gone_from_cpu + evicted, bad_copies=list(bad))

    def _add(self, report: Report) -> None:
        self._news.reports.append(report)
        if report.phase is Phase.FINISHED:
            self._under_way.discard(report.job)
            self._ended[report.job] = None
            if len(self._ended) > ENDED_KEPT:
                del self._ended[next(iter(self._ended))]
