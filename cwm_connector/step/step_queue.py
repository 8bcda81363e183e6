"""How other threads get something done on the engine thread, without ever making it wait."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class StepQueue:
    """Functions that wait for the next engine step.

    `call` and `nudge` may come from any thread and wake an idle engine. `drain` belongs to the engine thread, once a
    step; what a function raises goes to its caller's future, never into the engine.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._nudged = False

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Runs `function` in the next step; it must not block."""
        answer: Future[T] = Future()
        self._waiting.put((function, answer))
        self._wake()
        return answer

    def nudge(self) -> None:
        """Asks for one step, so that the workers' reports come in."""
        self._nudged = True
        self._wake()

    @property
    def wants_step(self) -> bool:
        return self._nudged or not self._waiting.empty()

    def drain(self) -> None:
        self._nudged = False
        for _ in range(self._waiting.qsize()):
            function, answer = self._waiting.get()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(function())
            except BaseException as problem:
                answer.set_exception(problem)
