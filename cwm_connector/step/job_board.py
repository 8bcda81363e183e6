"""The jobs in flight between the scheduler side and the workers, and the futures of the callers that wait for them.

Any thread may post a job. The engine thread sends the jobs and takes in the reports, once a step. The callbacks of the
futures run on the engine thread, so they must not block. A lock guards the tables and is held for moments only.
"""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.step.jobs import ChunkOutcome, Job, JobId, Phase, Report


@dataclass(frozen=True, slots=True)
class JobResult:
    """All ranks' reports in one. A chunk has the sum of the sizes, the slowest tier and the first failure."""

    outcomes: dict[ChunkKey, ChunkOutcome]
    seconds: float
    """The longest time that a rank took."""


@dataclass(slots=True)
class Ticket:
    """A job in flight. The callbacks of its futures run on the engine thread."""

    job: Job
    captured: "Future[None]" = field(default_factory=Future)
    """Done once every rank has read the blocks that it saves."""
    finished: "Future[JobResult]" = field(default_factory=Future)
    """Done once every rank has finished. Raises the first failure that a rank reported."""
    on_progress: Callable[[int], None] | None = None
    """Called on the engine thread with the number of chunks that every rank is done with."""
    _done: dict[int, int] = field(default_factory=dict)
    _captured: set[int] = field(default_factory=set)
    _final: dict[int, Report] = field(default_factory=dict)

    def add(self, report: Report, world_size: int) -> bool:
        """Take in one report. Return whether every rank has finished."""
        self._done[report.rank] = report.done
        if self.on_progress is not None and len(self._done) == world_size:
            self.on_progress(min(self._done.values()))
        if report.phase in (Phase.CAPTURED, Phase.FINISHED):
            self._captured.add(report.rank)
        if report.phase is Phase.FINISHED:
            self._final[report.rank] = report
        if len(self._captured) == world_size and not self.captured.done():
            self.captured.set_result(None)
        if len(self._final) < world_size:
            return False
        self._complete()
        return True

    def _complete(self) -> None:
        failure = next((error for report in self._final.values() if (error := report.error())), None)
        if failure is not None:
            self.finished.set_exception(failure)
            return
        merged: dict[ChunkKey, ChunkOutcome] = {}
        for report in self._final.values():
            for outcome in report.outcomes:
                merged[outcome.key] = _merge(merged.get(outcome.key), outcome)
        self.finished.set_result(JobResult(merged, max(report.seconds for report in self._final.values())))


def _merge(one: ChunkOutcome | None, other: ChunkOutcome) -> ChunkOutcome:
    if one is None:
        return other
    tiers = [tier for tier in (one.tier, other.tier) if tier is not None]
    return ChunkOutcome(
        one.key,
        max(tiers, key=list(TierName).index, default=None),
        one.size_bytes + other.size_bytes,
        one.failure or other.failure,
    )


class JobBoard:
    """The jobs in flight. Any thread may call `post`. The engine thread calls `take` and `deliver` once a step."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._new: list[Job] = []
        self._open: dict[JobId, Ticket] = {}

    def next_id(self) -> JobId:
        """Return an id for a new job. Any thread."""
        return JobId(next(self._ids))

    def post(self, job: Job, on_progress: Callable[[int], None] | None = None) -> Ticket:
        """Queue a job for the next step and return its ticket. Any thread."""
        ticket = Ticket(job, on_progress=on_progress)
        with self._lock:
            self._open[job.id] = ticket
            self._new.append(job)
        return ticket

    def take(self) -> list[Job]:
        """Return the jobs that were posted since the last step."""
        with self._lock:
            jobs, self._new = self._new, []
        return jobs

    def deliver(self, reports: list[Report]) -> None:
        """Take in the workers' reports and complete the tickets of the jobs that are over."""
        for report in reports:
            with self._lock:
                ticket = self._open.get(report.job)
            if ticket is not None and ticket.add(report, self._world_size):
                with self._lock:
                    del self._open[report.job]

    def fail_all(self, error: CWMError) -> None:
        """Fail all tickets with `error` and drop the queued jobs. Called when the engine shuts down."""
        with self._lock:
            tickets, self._open, self._new = list(self._open.values()), {}, []
        for ticket in tickets:
            for future in (ticket.captured, ticket.finished):
                if not future.done():
                    future.set_exception(error)
