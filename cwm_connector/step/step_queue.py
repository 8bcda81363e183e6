"""Run functions of other threads on the engine thread, without making the engine thread wait."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class StepQueue:
    """Functions that wait for the next engine step.

    Any thread may call `call` and `nudge`, which wake an idle engine. The engine thread calls `drain` once a step. An
    exception of a function goes to the caller's future and never into the engine.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """Take the function that wakes an idle engine. It is called from any thread and must not block."""
        self._wake = wake
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._nudged = False

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run `function` in the next step and return a future of its result. `function` must not block."""
        answer: Future[T] = Future()
        self._waiting.put((function, answer))
        self._wake()
        return answer

    def nudge(self) -> None:
        """Request a step, so that the workers' reports come in."""
        self._nudged = True
        self._wake()

    @property
    def wants_step(self) -> bool:
        """Return whether a step was requested or functions wait for one."""
        return self._nudged or not self._waiting.empty()

    def drain(self) -> None:
        """Run the functions that were queued before this call, and complete their futures."""
        self._nudged = False
        for _ in range(self._waiting.qsize()):
            function, answer = self._waiting.get()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(function())
            except BaseException as problem:
                answer.set_exception(problem)
