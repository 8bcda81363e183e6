"""A call that hangs is answered for, and only that one."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.tiers.timeout_threads import TimeoutThreads

LIMIT_S = 0.2


def overdue(started: bool) -> CWMError:
    return CWMError(Code.READ_FAILED, "no answer", buffer_in_use=started)


@pytest.fixture
def threads() -> Iterator[TimeoutThreads]:
    threads = TimeoutThreads("test", 2, LIMIT_S)
    yield threads
    threads.close()


@pytest.fixture
def disk_is_back() -> Iterator[threading.Event]:
    """Ends every hanging call when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def in_use_after_failure(future: "Future[bool]") -> bool:
    with pytest.raises(CWMError) as raised:
        future.result(timeout=10)
    assert raised.value.code is Code.READ_FAILED
    return bool(raised.value.context["buffer_in_use"])


def test_a_result_and_an_exception_come_through(threads: TimeoutThreads) -> None:
    assert threads.submit(lambda: 7, overdue).result() == 7
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0, overdue).result()
    assert threads.submit(lambda: 8, overdue).result() == 8


def test_a_started_call_cannot_be_cancelled(threads: TimeoutThreads) -> None:
    future = threads.submit(lambda: 7, overdue)
    assert not future.cancel()
    assert future.result() == 7


def test_a_call_that_hangs_fails_and_others_go_on(threads: TimeoutThreads, disk_is_back: threading.Event) -> None:
    hanging = threads.submit(disk_is_back.wait, overdue)
    others = [threads.submit(partial(abs, -number), overdue) for number in range(20)]
    assert [other.result() for other in others] == list(range(20))
    assert in_use_after_failure(hanging)
    assert threads.submit(lambda: 7, overdue).result() == 7


def test_when_every_thread_hangs_what_waits_and_what_comes_fails_without_having_begun(
    threads: TimeoutThreads, disk_is_back: threading.Event
) -> None:
    hanging = [threads.submit(disk_is_back.wait, overdue) for _ in range(2)]
    waiting = threads.submit(disk_is_back.is_set, overdue)
    assert [in_use_after_failure(future) for future in hanging] == [True, True]
    assert not in_use_after_failure(waiting)
    late = threads.submit(disk_is_back.is_set, overdue)
    assert late.done()
    assert not in_use_after_failure(late)


def test_threads_serve_again_when_their_call_comes_back(threads: TimeoutThreads) -> None:
    disk_is_back, returned = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        disk_is_back.wait()
        returned.release()

    for hanging in [threads.submit(hang, overdue) for _ in range(2)]:
        with pytest.raises(CWMError):
            hanging.result()
    disk_is_back.set()
    for _ in range(2):
        returned.acquire()
    while True:  # the threads take a moment from the call's end to the next one
        future = threads.submit(lambda: 7, overdue)
        if future.exception() is None:
            break
    assert future.result() == 7


def test_a_long_queue_is_no_failure(threads: TimeoutThreads) -> None:
    pause = threading.Event()
    futures = [threads.submit(lambda: pause.wait(LIMIT_S / 4), overdue) for _ in range(20)]
    assert [future.result() for future in futures] == [False] * 20


def test_closing_waits_for_what_runs_fails_what_waits_and_refuses_what_comes() -> None:
    threads = TimeoutThreads("test", 1, 10)
    go, began = threading.Event(), threading.Event()

    def run() -> str:
        began.set()
        go.wait()
        return "done"

    running = threads.submit(run, overdue)
    waiting = threads.submit(go.is_set, overdue)
    began.wait()
    waiting.add_done_callback(lambda _: go.set())  # close fails what waits before it waits for what runs
    threads.close()
    assert running.result(timeout=0) == "done"
    assert not in_use_after_failure(waiting)
    assert not in_use_after_failure(threads.submit(go.is_set, overdue))


def test_closing_leaves_a_hanging_call_alone(disk_is_back: threading.Event) -> None:
    one_thread = TimeoutThreads("test", 1, LIMIT_S)
    began = threading.Event()

    def hang() -> bool:
        began.set()
        return disk_is_back.wait()

    hanging = one_thread.submit(hang, overdue)
    began.wait()
    one_thread.close()
    assert in_use_after_failure(hanging)


def test_no_thread_is_left_after_closing() -> None:
    threads = TimeoutThreads("leaver", 3, 10)
    for future in [threads.submit(lambda: 7, overdue) for _ in range(10)]:
        future.result()
    own = [thread for thread in threading.enumerate() if thread.name.startswith("leaver")]
    assert own
    threads.close()
    for thread in own:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in own)
