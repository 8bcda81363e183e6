"""Computes checksums beside the copies, on as many threads as the bus needs.

Transfer threads only. Without threads of its own, work is done by whoever asks for its result. The CPU build does so:
two threads inside the same memory are no faster there, and the model needs the cores.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Lazy(Generic[T]):
    """Work that is done when its result is asked for, which is once."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work

    def done(self) -> bool:
        """Return False: the work is still to do."""
        return False

    def result(self) -> T:
        """Do the work and return its result, or raise what it raises."""
        return self._work()


class Checksums:
    """Runs work on `threads` threads, in the order in which it came."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cwm-checksum") if threads else None

    def after(self, earlier: "Future[T]", work: Callable[[], None]) -> "Future[T] | Lazy[T]":
        """Do the work as soon as `earlier` has succeeded. The result is that of `earlier`, the failure that of both."""

        def both() -> T:
            found = earlier.result()
            work()
            return found

        if self._pool is None:
            return Lazy(both)
        pool, checked = self._pool, Future[T]()

        def run() -> None:
            try:
                checked.set_result(both())
            except BaseException as problem:
                checked.set_exception(problem)

        if earlier.done():
            pool.submit(run)
        else:
            earlier.add_done_callback(lambda _: pool.submit(run))
        return checked

    def together(self, pieces: Sequence[Callable[[], T]], conclude: Callable[[list[T]], R]) -> "Future[R]":
        """Do the pieces at the same time, and conclude from their results. Needs threads.

        The future is done when no piece is being worked on any more.
        """
        results: list[T | BaseException] = [CancelledError()] * len(pieces)
        left, concluded = itertools.count(len(pieces) - 1, -1), Future[R]()

        def run(at: int) -> None:
            try:
                results[at] = pieces[at]()
            except BaseException as problem:
                results[at] = problem
            if next(left) == 0:  # one thread alone sees it: `next` is atomic
                _conclude(concluded, results, conclude)

        assert self._pool is not None
        for at in range(len(pieces)):
            self._pool.submit(run, at)
        return concluded

    def run(self, work: Callable[[], T]) -> "Future[T]":
        """Do the work on a thread, or at once if there is none."""
        if self._pool is not None:
            return self._pool.submit(work)
        done = Future[T]()
        try:
            done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)
        return done

    def close(self) -> None:
        """End the threads after the work that was given to them."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def _conclude(concluded: "Future[R]", results: Sequence[T | BaseException], conclude: Callable[[list[T]], R]) -> None:
    try:
        good: list[T] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            good.append(result)
        concluded.set_result(conclude(good))
    except BaseException as problem:
        concluded.set_exception(problem)
