"""The jobs in flight between the scheduler side and the workers, and the futures of the callers that wait for them.

Any thread may post a job. The engine thread sends the jobs and takes in the reports, once a step. The callbacks of the
futures run on the engine thread, so they must not block. A lock guards the tables and is held for moments only.

A job can get lost, in a hook that fails or in a worker. The board asks the workers about a job that nobody has reported
for a while, and a worker that does not have it reports it as failed. A job is never failed without the workers' word,
because they could still be copying.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.step.jobs import (
    CanaryJob,
    ChunkOutcome,
    Job,
    JobId,
    LoadJob,
    Phase,
    Report,
    RollCall,
    SaveJob,
    Work,
)

logger = logging.getLogger(__name__)

DRAIN_S: Final = 5.0
"""For so long no copy begins after vLLM was told to try again."""
HOLD_S: Final = 10.0
"""Requests wait so long for the canary, then they compute."""
SILENCE_S: Final = 60.0
"""A job of which no rank has reported anything for so long is named in the log and asked about, again and again."""


class JobResult:
    """All ranks' reports in one. They are merged by the thread that reads the outcomes."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self._reports = reports

    @property
    def seconds(self) -> float:
        """Return the longest time that a rank took."""
        return max(report.seconds for report in self._reports)

    @property
    def canary(self) -> str:
        """Return the prints of a canary on all ranks."""
        return "+".join(report.canary for report in sorted(self._reports, key=lambda report: report.rank))

    @cached_property
    def outcomes(self) -> dict[ChunkKey, ChunkOutcome]:
        """Return each chunk with the sum of the sizes, the slowest tier and the first failure."""
        first, *others = self._reports
        merged = {outcome.key: outcome for outcome in first.outcomes}
        for report in others:
            for outcome in report.outcomes:
                merged[outcome.key] = _merge(merged.get(outcome.key), outcome)
        return merged


@dataclass(slots=True)
class Ticket:
    """A job in flight. The callbacks of its futures run on the engine thread."""

    job: Work
    heard_at: float
    """When it was posted, or last reported or asked about."""
    captured: "Future[None]" = field(default_factory=Future)
    """Done once every rank has read the blocks that it saves."""
    finished: "Future[JobResult]" = field(default_factory=Future)
    """Done once every rank has finished. Raises the first failure that a rank reported."""
    on_progress: Callable[[int], None] | None = None
    """Called on the engine thread with the number of chunks that every rank is done with."""
    on_captured: Callable[[int], None] | None = None
    """Called on the engine thread with the number of chunks, from the end, whose blocks every rank has read."""
    _done: dict[int, int] = field(default_factory=dict)
    _read: dict[int, int] = field(default_factory=dict)
    _captured: set[int] = field(default_factory=set)
    _final: dict[int, Report] = field(default_factory=dict)

    def add(self, report: Report, world_size: int) -> bool:
        """Take in one report. Return whether every rank has finished."""
        if report.rank in self._final:
            return False  # it was late, and the rank was asked about the job meanwhile
        self._done[report.rank] = report.done
        if self.on_progress is not None and len(self._done) == world_size:
            _tell(self.on_progress, min(self._done.values()))
        self._read[report.rank] = report.captured
        if self.on_captured is not None and len(self._read) == world_size:
            _tell(self.on_captured, min(self._read.values()))
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
        self.finished.set_result(JobResult(tuple(self._final.values())))


def _tell(observer: Callable[[int], None], count: int) -> None:
    """Call an observer. The job does not depend on what becomes of it."""
    try:
        observer(count)
    except Exception:
        logger.exception("the progress of a job could not be passed on")


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

    def __init__(self, world_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._world_size = world_size
        self._clock = clock
        self._next_watch = clock() + SILENCE_S
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._new: list[Work] = []
        self._open: dict[JobId, Ticket] = {}

    def next_id(self) -> JobId:
        """Return an id for a new job. Any thread."""
        return JobId(next(self._ids))

    def post(self, job: Work, on_progress: Callable[[int], None] | None = None) -> Ticket:
        """Queue a job for the next step and return its ticket. Any thread."""
        ticket = Ticket(job, self._clock(), on_progress=on_progress)
        with self._lock:
            self._open[job.id] = ticket
            self._new.append(job)
        return ticket

    def take(self) -> list[Job]:
        """Return the jobs that were posted since the last step, and a roll call if others have been silent."""
        with self._lock:
            jobs: list[Job] = list(self._new)
            self._new = []
            silent = self._silent()
        if silent:
            names = ", ".join(f"{type(job).__name__} {job.id}" for job in silent)
            logger.warning("no worker has reported for %d s: %s; asking the workers", SILENCE_S, names)
            jobs.append(RollCall(tuple(silent)))
        return jobs

    def deliver(self, reports: list[Report]) -> None:
        """Take in the workers' reports and complete the tickets of the jobs that are over.

        A report that can't be taken in does not cost those after it.
        """
        for report in reports:
            with self._lock:
                ticket = self._open.get(report.job)
            if ticket is None:
                continue
            ticket.heard_at = self._clock()
            try:
                if ticket.add(report, self._world_size):
                    with self._lock:
                        del self._open[report.job]
            except Exception:
                logger.exception("a report of job %d could not be taken in", report.job)

    def copies_cache(self) -> bool:
        """Return whether a job is open that reads or writes vLLM's cache."""
        with self._lock:
            return any(
                isinstance(ticket.job, LoadJob | CanaryJob)
                or (isinstance(ticket.job, SaveJob) and not ticket.captured.done())
                for ticket in self._open.values()
            )

    def fail_all(self, error: CWMError) -> None:
        """Fail all tickets with `error` and drop the queued jobs. Called when the engine shuts down."""
        with self._lock:
            tickets, self._open, self._new = list(self._open.values()), {}, []
        for ticket in tickets:
            for future in (ticket.captured, ticket.finished):
                if not future.done():
                    future.set_exception(error)

    def _silent(self) -> list[Work]:
        """Return the jobs that nobody has reported for `SILENCE_S`. The caller holds the lock."""
        now = self._clock()
        if now < self._next_watch:
            return []
        silent = [ticket for ticket in self._open.values() if now - ticket.heard_at >= SILENCE_S]
        for ticket in silent:
            ticket.heard_at = now
        self._next_watch = now + SILENCE_S / 4
        return [ticket.job for ticket in silent]


class CopyGate:
    """The gate before copies to and from vLLM's cache, closed while vLLM is about to drop or unmap the cache.

    vLLM asks before it sleeps, and whenever it drops its caches. A copy that is under way then would touch memory that
    vLLM gives away. So the answer is no until all copies are over, and meanwhile none begins, so that the next try
    succeeds. Engine thread, but any thread may call `is_paused` and `require_awake`.
    """

    def __init__(
        self,
        board: JobBoard,
        is_paused: Callable[[], bool],
        may_load: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_paused`: whether the engine sleeps or was paused. `may_load`: whether its weights are known."""
        self.is_paused = is_paused
        self._board = board
        self._clock = clock
        self._closed_until = float("-inf")
        self.may_load = may_load
        self._held_since: float | None = None

    def holds_loads(self) -> bool:
        """Return whether requests have to wait until it is known what they may load. They wait `HOLD_S` at most."""
        if self.may_load():
            self._held_since = None
            return False
        self._held_since = self._clock() if self._held_since is None else self._held_since
        return self._clock() - self._held_since < HOLD_S

    def drained(self) -> bool:
        """Return whether no copy is under way. If one is, begin no other for a while."""
        if not self._board.copies_cache():
            self._closed_until = float("-inf")
            return True
        self._closed_until = self._clock() + DRAIN_S
        return False

    @property
    def is_closed(self) -> bool:
        """Return whether no copy may begin."""
        return self._clock() < self._closed_until

    def require_open(self) -> None:
        """Raise `Code.STATE` if no copy may begin."""
        self.require_awake()
        if self.is_closed:
            raise CWMError(Code.STATE, "the engine is about to drop its KV cache; try again in a few seconds")

    def require_awake(self) -> None:
        """Raise `Code.STATE` if the engine sleeps or is paused, because it may take no step for a long time."""
        if self.is_paused():
            raise CWMError(Code.STATE, "the engine is asleep or paused; wake it and try again")
