"""Run functions of other threads on the engine thread, without making the engine thread wait."""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

STEP_SHARE_S: Final = 0.0004
"""CPU time of each step. When it is used up, what still waits is left to the next step."""
IDLE_STEP_SHARE_S: Final = 0.0007
"""That of a step that computes nothing. vLLM sleeps for a millisecond after it, so a freeze waits for every step."""


class StepQueue:
    """Functions that wait for the next engine step.

    Any thread may call `call`, `collect` and `nudge`, which wake an idle engine. The engine thread calls `drain` once a
    step. An exception of a function goes to the caller's future and never into the engine.
    """

    def __init__(self, wake: Callable[[], None], clock: Callable[[], float] = time.thread_time) -> None:
        """Take the function that wakes an idle engine. It is called from any thread and must not block."""
        self._wake = wake
        self._clock = clock
        self._calls: queue.SimpleQueue[_Call[Any]] = queue.SimpleQueue()
        self._collections: queue.SimpleQueue[_Collection[Any]] = queue.SimpleQueue()
        self._nudged = False

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run `function` in the next step and return a future of its result. `function` must not block."""
        call = _Call(function)
        self._calls.put(call)
        self._wake()
        return call.answer

    def collect(self, parts: Iterator[Sequence[T]]) -> "Future[list[T]]":
        """Take all parts, over as many steps as it needs, and return a future of their items.

        A part may be empty. Getting one must take only some microseconds. Functions that wait go first.
        """
        collection = _Collection(parts)
        self._collections.put(collection)
        self._wake()
        return collection.answer

    def nudge(self) -> None:
        """Request a step, so that the workers' reports come in."""
        self._nudged = True
        self._wake()

    @property
    def wants_step(self) -> bool:
        """Return whether a step was requested or anything waits for one."""
        return self._nudged or not self._calls.empty() or not self._collections.empty()

    def drain(self, share_s: float = STEP_SHARE_S) -> None:
        """Run the functions that wait, then collect, until the share of the step is used up. Do at least one thing."""
        self._nudged = False
        until = self._clock() + share_s

        def is_over() -> bool:
            return self._clock() >= until

        while not self._calls.empty():
            self._calls.get().run()
            if is_over():
                return
        while not self._collections.empty():
            collection = self._collections.get()
            if not collection.run(is_over):
                self._collections.put(collection)
                return


class _Call(Generic[T]):
    """One function."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.answer: Future[T] = Future()

    def run(self) -> None:
        """Run the function, unless its caller has given up."""
        if self.answer.set_running_or_notify_cancel():
            try:
                self.answer.set_result(self._function())
            except BaseException as problem:
                self.answer.set_exception(problem)


class _Collection(Generic[T]):
    """Parts that are taken one by one."""

    def __init__(self, parts: Iterator[Sequence[T]]) -> None:
        self._parts = parts
        self._found: list[T] = []
        self.answer: Future[list[T]] = Future()

    def run(self, is_over: Callable[[], bool]) -> bool:
        """Take parts until `is_over`. Return whether it was the last one, or the caller has given up."""
        if not self.answer.running() and not self.answer.set_running_or_notify_cancel():
            return True
        try:
            for part in self._parts:
                self._found += part
                if is_over():
                    return False
        except BaseException as problem:
            self.answer.set_exception(problem)
        else:
            self.answer.set_result(self._found)
        return True
