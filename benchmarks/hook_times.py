"""The times of one hook, and what of them is the hook's own.

The machine may have other work. A thread that shares a core runs at half its speed, and one that was interrupted comes
back to cold caches. Its CPU time then says more about its neighbours than about the hook, and a 99th percentile is made
of just these samples. So each call is measured three ways:

    wall        from call to return
    CPU         what the thread spent on the CPU
    undisturbed the CPU time without the garbage collector's, divided by how much slower the machine was at that moment
                than at its best. A fixed piece of work tells that, which runs just before and just after the call. A
                call during which the kernel took the CPU away is left out, unless too few others are left.

Python collects garbage when enough objects were made, whoever made them, and looks at those of the whole process then.
A collection takes milliseconds of whatever call it falls into. It is measured and shown by itself.

The limit is on the 99th percentile of the last one. On an idle machine the three agree.
"""

import gc
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

ENOUGH: Final = 20
"""Calls. A percentile of fewer says little."""
_WORK: Final = {number.to_bytes(32, "big"): number for number in range(1000)}
"""Hashed bytes, numbers and a loop, as in the hooks. It takes about 50 microseconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One call, in milliseconds."""

    wall: float
    cpu: float
    collecting: float
    """How much of the CPU time was the garbage collector's."""
    work: float
    """The mean time of the fixed piece of work before and after the call."""
    interrupted: bool


class Collections:
    """The CPU time that the garbage collector has taken since the start."""

    def __init__(self) -> None:
        self.ns = 0
        self._began = 0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time_ns()
        else:
            self.ns += time.thread_time_ns() - self._began


_COLLECTIONS: Final = Collections()


@dataclass(slots=True)
class Times:
    """The calls of one hook."""

    samples: list[Sample] = field(default_factory=list)

    def measure(self, call: Callable[[], object]) -> object:
        """Call and note how long it took. Return the result."""
        time.sleep(0.001)  # the thread has its share of the CPU again, so that it is seldom interrupted
        before = _fixed_work()
        switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        collecting = _COLLECTIONS.ns
        began, began_cpu = time.perf_counter_ns(), time.thread_time_ns()
        result = call()
        cpu, wall = time.thread_time_ns() - began_cpu, time.perf_counter_ns() - began
        collecting = _COLLECTIONS.ns - collecting
        interrupted = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw != switches
        self.samples.append(Sample(wall / 1e6, cpu / 1e6, collecting / 1e6, (before + _fixed_work()) / 2, interrupted))
        return result

    def undisturbed(self, best_work: float) -> list[float]:
        """Return the CPU times as they would be if the fixed work always took `best_work`."""
        counted = [each for each in self.samples if not each.interrupted]
        if len(counted) < min(ENOUGH, len(self.samples)):
            counted = self.samples
        return [(each.cpu - each.collecting) * min(1.0, best_work / each.work) for each in counted]

    @property
    def cpu(self) -> list[float]:
        """Return the CPU time of each call."""
        return [each.cpu for each in self.samples]

    @property
    def collecting(self) -> list[float]:
        """Return the garbage collector's time in each call."""
        return [each.collecting for each in self.samples]

    @property
    def wall(self) -> list[float]:
        """Return the time on the wall of each call."""
        return [each.wall for each in self.samples]


def best_work() -> float:
    """Return how long the fixed work takes when nothing disturbs it.

    The least of a hundred, because the clock of a virtual machine's threads sometimes stands still.
    """
    return statistics.quantiles((_fixed_work() for _ in range(20_000)), n=100)[0]


def percentile(values: list[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def _fixed_work() -> float:
    began = time.thread_time_ns()
    total = 0
    for key in _WORK:
        total += _WORK[key]
    return (time.thread_time_ns() - began) / 1e6
