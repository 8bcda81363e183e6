"""Blocking calls on threads of their own, each answered within a time-out, whatever the call does.

A disk that stops answering leaves a thread inside the kernel, and nothing can end it. So a watchdog answers instead:
the future fails, and the thread stays with the call until it returns, then serves again. The time-out runs from the
moment a thread takes the call, so a long queue is no failure. When every thread is overdue, queued calls fail as well.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from cwm_connector.core.errors import CWMError

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Call:
    work: Callable[[], Any]
    overdue: Callable[[bool], CWMError]
    future: Future[Any]
    deadline: float = 0.0


class TimeoutThreads:
    """Up to `threads` daemon threads named `name`, started as they are needed, and their watchdog."""

    def __init__(self, name: str, threads: int, timeout_s: float) -> None:
        self._name = name
        self._threads = threads
        self._timeout_s = timeout_s
        lock = threading.Lock()
        self._work_came = threading.Condition(lock)
        self._clock_moved = threading.Condition(lock)
        self._lock = lock
        self._waiting: deque[_Call] = deque()
        self._running: dict[_Call, None] = {}
        """Oldest first, so by deadline."""
        self._started = 0
        self._idle = 0
        self._closed = False

    def submit(self, work: Callable[[], T], overdue: Callable[[bool], CWMError]) -> Future[T]:
        """Run `work()` on one of the threads and return its future.

        The future can't be cancelled. Its callbacks run on one of these threads and must be quick. `overdue(started)`
        makes the error of a call that timed out, or that never began.
        """
        call = _Call(work, overdue, Future())
        call.future.set_running_or_notify_cancel()
        with self._lock:
            refused = self._closed or self._is_stuck()
            if not refused:
                self._waiting.append(call)
                self._start_a_thread()
                self._work_came.notify()
        if refused:
            call.future.set_exception(overdue(False))
        return call.future

    def close(self) -> None:
        """Fail queued calls, and return when the running ones have ended or are overdue. Threads end when they can."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._work_came.notify_all()
        for call in waiting:
            call.future.set_exception(call.overdue(False))
        with self._lock:
            running = list(self._running)
        for call in running:
            with suppress(Exception):
                call.future.result()
        with self._lock:
            self._clock_moved.notify_all()

    def _start_a_thread(self) -> None:
        if self._started == 0:
            threading.Thread(target=self._watch, name=f"{self._name}-watchdog", daemon=True).start()
        if self._started < self._threads and self._idle < len(self._waiting):
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()

    def _is_stuck(self) -> bool:
        now = time.monotonic()
        return len(self._running) == self._threads and all(call.deadline <= now for call in self._running)

    def _serve(self) -> None:
        while (call := self._next_call()) is not None:
            self._answer(call)
            del call  # it holds the caller's buffer

    def _answer(self, call: _Call) -> None:
        try:
            result = call.work()
        except BaseException as problem:
            with suppress(InvalidStateError):  # the watchdog was first
                call.future.set_exception(problem)
        else:
            with suppress(InvalidStateError):
                call.future.set_result(result)
        with self._lock:
            del self._running[call]

    def _next_call(self) -> _Call | None:
        with self._lock:
            self._idle += 1
            while not self._waiting:
                if self._closed:
                    return None
                self._work_came.wait()
            self._idle -= 1
            call = self._waiting.popleft()
            call.deadline = time.monotonic() + self._timeout_s
            if all(other.future.done() for other in self._running):  # else an earlier deadline wakes the watchdog
                self._clock_moved.notify()
            self._running[call] = None
            return call

    def _watch(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                late = [call for call in self._running if call.deadline <= now and not call.future.done()]
                never = list(self._waiting) if self._is_stuck() else []
                if never:
                    self._waiting.clear()
                if not late and not never:
                    open_calls = [call for call in self._running if not call.future.done()]
                    if self._closed and not open_calls:
                        return
                    self._clock_moved.wait(open_calls[0].deadline - now if open_calls else None)
                    continue
            for call in late:
                with suppress(InvalidStateError):
                    call.future.set_exception(call.overdue(True))
            for call in never:
                call.future.set_exception(call.overdue(False))
