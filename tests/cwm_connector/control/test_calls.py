"""calls.py: answers, cancelled and overdue calls, and progress."""

import asyncio
import logging
import threading
from typing import Any

import pytest

from cwm_connector.control.connection import ConnectionLimits
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Op
from cwm_connector.protocol.wire import (
    Call,
    Cancel,
    Failure,
    Progress,
    Result,
)
from tests.support.control import (
    PATIENCE_S,
    RawClient,
    Served,
    Waiting,
    assert_serving,
    failed,
    served,
)


def test_a_call_gets_its_arguments_checked_and_defaulted(shared: Served) -> None:
    with RawClient(shared.path) as client:
        answer = client.ask(Call(1, "window.tag", {"window_name": "w", "add": ["a"]}))
    assert answer == Result(
        1,
        {
            "op": "window.tag",
            "args": {"window_name": "w", "add": ["a"], "remove": [], "description": None, "new_name": None},
        },
    )


def test_a_quick_call_overtakes_a_slow_one(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        client.send(Call(1, "cache.stats"), Call(2, "ping"))
        assert client.receive() == Result(2, {"op": "ping", "args": {}})
        slow.release()
        assert client.receive() == Result(1, {"released": True})


def test_an_operation_s_failure_reaches_the_client_with_its_context(server: Served) -> None:
    async def taken(args: Any, progress: Any) -> dict[str, Any]:
        raise CWMError(Code.WINDOW_EXISTS, "the name 'w' is taken; choose another", window_name="w")

    server.bench.handlers[Op.STATS] = taken
    with RawClient(server.path) as client:
        answer = client.ask(Call(1, "cache.stats"))
    assert answer == Failure(1, 3003, "the name 'w' is taken; choose another", False, {"window_name": "w"})


def test_an_unexpected_exception_is_an_internal_error_and_its_text_is_shown_nowhere(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(args: Any, progress: Any) -> dict[str, Any]:
        raise KeyError(salt)

    salt = "-".join(["a", "secret", "salt"])  # put together, for the stack shows this source
    server.bench.handlers[Op.STATS] = broken
    with RawClient(server.path) as client, caplog.at_level(logging.ERROR):
        answer = failed(client.ask(Call(1, "cache.stats")), Code.INTERNAL, 1)
        assert isinstance(client.ask(Call(2, "ping")), Result)
    assert "KeyError" in answer.message
    assert "in broken" in caplog.text  # the stack
    assert salt not in answer.message + caplog.text


def test_a_cancelled_call_is_answered_with_a_timeout(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        client.send(Call(1, "cache.stats"), Cancel(1), Cancel(1), Cancel(55))
        assert "cancelled by the client" in failed(client.receive(), Code.OPERATION_TIMEOUT, 1).message
        client.send(Call(2, "cache.stats"))
        assert slow.started.wait(PATIENCE_S)
        client.send(Cancel(2))
        failed(client.receive(), Code.OPERATION_TIMEOUT, 2)
        assert isinstance(client.ask(Call(3, "ping")), Result)
    assert slow.cancelled.is_set()


def test_a_commit_that_is_shielded_from_the_cancel_answers_with_its_success(server: Served) -> None:
    started = threading.Event()

    async def commit(args: Any, progress: Any) -> dict[str, Any]:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return {"committed": True}
        raise AssertionError

    server.bench.handlers[Op.STATS] = commit
    with RawClient(server.path) as client:
        client.send(Call(1, "cache.stats"))
        assert started.wait(PATIENCE_S)
        client.send(Cancel(1))
        assert client.receive() == Result(1, {"committed": True})


def test_a_call_over_its_time_is_cancelled_and_answered_with_a_timeout(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        answer = failed(client.ask(Call(1, "cache.stats", {}, 0.02)), Code.OPERATION_TIMEOUT, 1)
    assert "0.02 s" in answer.message
    assert answer.retryable
    assert slow.cancelled.is_set()


@pytest.mark.parametrize("timeout_s", [None, 1000.0, float("inf")])
def test_the_engine_s_own_limit_bounds_every_call(timeout_s: float | None) -> None:
    with served(ConnectionLimits(call_s=0.02)) as server:
        slow = server.bench.handlers[Op.STATS] = Waiting()
        with RawClient(server.path) as client:
            failed(client.ask(Call(1, "cache.stats", {}, timeout_s)), Code.OPERATION_TIMEOUT, 1)
        assert slow.cancelled.is_set()


def test_an_operation_that_cancels_itself_is_an_internal_error(server: Served) -> None:
    async def stray(args: Any, progress: Any) -> dict[str, Any]:
        raise asyncio.CancelledError

    server.bench.handlers[Op.STATS] = stray
    with RawClient(server.path) as client:
        failed(client.ask(Call(1, "cache.stats")), Code.INTERNAL, 1)


def test_a_client_that_leaves_has_its_calls_cancelled_and_only_those(server: Served) -> None:
    leaving = server.bench.handlers[Op.STATS] = Waiting()
    staying = server.bench.handlers[Op.METRICS] = Waiting()
    with RawClient(server.path) as other:
        other.send(Call(1, "metrics"))
        with RawClient(server.path) as client:
            client.send(Call(1, "cache.stats"))
            assert leaving.started.wait(PATIENCE_S)
        assert leaving.cancelled.wait(PATIENCE_S)
        assert staying.started.wait(PATIENCE_S)
        staying.release()
        assert other.receive() == Result(1, {"released": True})


def test_a_shielded_commit_is_completed_after_the_client_has_left(server: Served) -> None:
    started, ended = threading.Event(), threading.Event()

    async def commit(args: Any, progress: Any) -> dict[str, Any]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(lambda: None)
            ended.set()
        raise AssertionError

    server.bench.handlers[Op.STATS] = commit
    with RawClient(server.path) as client:
        client.send(Call(1, "cache.stats"))
        assert started.wait(PATIENCE_S)
    assert ended.wait(PATIENCE_S)
    assert_serving(server.path)


# --- accepted work ---------------------------------------------------------------------------------------------------

FREEZE = {"session_id": "s", "window_name": "w"}


class Freezing(Waiting):
    """A freeze that reports progress, waits, and signals that it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.done = threading.Event()

    async def __call__(self, args: Any, progress: Any) -> dict[str, Any]:
        progress(1, 2, "chunks stored")
        result = await super().__call__(args, progress)
        progress(2, 2, "chunks stored")
        self.done.set()
        return result


def test_a_freeze_goes_on_when_its_client_leaves(server: Served) -> None:
    freezing = server.bench.handlers[Op.FREEZE] = Freezing()
    with RawClient(server.path) as client:
        client.send(Call(1, "window.freeze", FREEZE))
        assert freezing.started.wait(PATIENCE_S)
    assert_serving(server.path)  # by now the engine has seen the client leave
    freezing.release()
    assert freezing.done.wait(PATIENCE_S) and not freezing.cancelled.is_set()


def test_a_freeze_whose_client_leaves_at_once_is_carried_out(server: Served) -> None:
    freezing = server.bench.handlers[Op.FREEZE] = Freezing()
    with RawClient(server.path) as client:
        client.send(Call(1, "window.freeze", FREEZE))
    assert freezing.started.wait(PATIENCE_S)
    freezing.release()
    assert freezing.done.wait(PATIENCE_S)


def test_a_freeze_goes_on_when_its_client_breaks_the_protocol(server: Served) -> None:
    freezing = server.bench.handlers[Op.FREEZE] = Freezing()
    with RawClient(server.path) as client:
        client.send(Call(1, "window.freeze", FREEZE))
        assert freezing.started.wait(PATIENCE_S)
        client.send_bytes(b"\0\0\0\1\xc0")
        assert any(isinstance(answer, Failure) for answer in client.receive_all())
    freezing.release()
    assert freezing.done.wait(PATIENCE_S)


def test_a_freeze_over_its_client_s_time_is_answered_and_goes_on(server: Served) -> None:
    freezing = server.bench.handlers[Op.FREEZE] = Freezing()
    with RawClient(server.path) as client:
        client.send(Call(1, "window.freeze", FREEZE, 0.02))
        assert isinstance(client.receive(), Progress)
        answer = failed(client.receive(), Code.OPERATION_TIMEOUT, 1)
        assert "goes on" in answer.message and answer.context == {"carried_on": True}
        client.send(Cancel(1), Call(2, "ping"))  # the call has ended, and its number means nothing any more
        assert isinstance(client.receive(), Result)
        freezing.release()
        assert freezing.done.wait(PATIENCE_S)


def test_a_cancel_ends_a_freeze(server: Served) -> None:
    freezing = server.bench.handlers[Op.FREEZE] = Freezing()
    with RawClient(server.path) as client:
        client.send(Call(1, "window.freeze", FREEZE), Cancel(1))
        failed(client.receive(), Code.OPERATION_TIMEOUT, 1)
        client.send(Call(2, "window.freeze", FREEZE))
        assert freezing.started.wait(PATIENCE_S)
        assert isinstance(client.receive(), Progress)
        failed(client.ask(Cancel(2)), Code.OPERATION_TIMEOUT, 2)
    assert freezing.cancelled.is_set()


def test_only_so_many_freezes_go_on_without_a_client() -> None:
    with served(ConnectionLimits(carried_on=2)) as server:
        freezes = [Freezing() for _ in range(3)]
        for number, freezing in enumerate(freezes):
            server.bench.handlers[Op.FREEZE] = freezing
            with RawClient(server.path) as client:
                client.send(Call(number, "window.freeze", FREEZE))
                assert freezing.started.wait(PATIENCE_S)
            assert_serving(server.path)
        assert freezes[2].cancelled.wait(PATIENCE_S)
        for freezing in freezes[:2]:
            freezing.release()
            assert freezing.done.wait(PATIENCE_S) and not freezing.cancelled.is_set()
        later = server.bench.handlers[Op.FREEZE] = Freezing()
        with RawClient(server.path) as client:
            client.send(Call(1, "window.freeze", FREEZE))
            assert later.started.wait(PATIENCE_S)
        later.release()
        assert later.done.wait(PATIENCE_S)


def test_a_freeze_without_a_client_ends_with_the_engine_s_own_limit() -> None:
    with served(ConnectionLimits(call_s=0.05)) as server:
        freezing = server.bench.handlers[Op.FREEZE] = Freezing()
        with RawClient(server.path) as client:
            client.send(Call(1, "window.freeze", FREEZE))
            assert freezing.started.wait(PATIENCE_S)
        assert freezing.cancelled.wait(PATIENCE_S)


def test_a_freeze_without_a_client_ends_with_its_server() -> None:
    with served() as server:
        freezing = server.bench.handlers[Op.FREEZE] = Freezing()
        with RawClient(server.path) as client:
            client.send(Call(1, "window.freeze", FREEZE))
            assert freezing.started.wait(PATIENCE_S)
        assert_serving(server.path)
    assert freezing.cancelled.is_set()


class _Lines(logging.Handler):
    """Keeps the lines of a log, and signals the first."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.heard = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record)
        self.heard.set()


def test_a_failure_without_a_client_is_logged_by_its_code(server: Served) -> None:
    lines, started, ended = _Lines(), threading.Event(), threading.Event()

    async def failing(args: Any, progress: Any) -> dict[str, Any]:
        started.set()
        await asyncio.to_thread(ended.wait, PATIENCE_S)
        raise CWMError(Code.QUOTA, "no room for s3cret")

    server.bench.handlers[Op.FREEZE] = failing
    log = logging.getLogger("cwm_connector.control.calls")
    log.addHandler(lines)
    try:
        with RawClient(server.path) as client:
            client.send(Call(1, "window.freeze", FREEZE))
            assert started.wait(PATIENCE_S)
        assert_serving(server.path)
        ended.set()
        assert lines.heard.wait(PATIENCE_S)
    finally:
        log.removeHandler(lines)
    assert "CWM-4003" in lines.text and "s3cret" not in lines.text


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_is_coalesced_and_the_last_comes_before_the_result() -> None:
    async def busy(args: Any, progress: Any) -> dict[str, Any]:
        for done in range(1, 1001):
            progress(done, 1000, f"step {done}")
            await asyncio.sleep(0)
        return {}

    with served(ConnectionLimits(progress_interval_s=3600)) as server:
        server.bench.handlers[Op.STATS] = busy
        with RawClient(server.path) as client:
            client.send(Call(1, "cache.stats"))
            first, last, result = (client.receive() for _ in range(3))
    assert isinstance(first, Progress)
    assert first.done < 1000
    assert last == Progress(1, 1000, 1000, "step 1000")
    assert result == Result(1, {})


def test_progress_flows_while_the_call_runs(server: Served) -> None:
    steps: asyncio.Queue[int] = asyncio.Queue()
    loop: list[asyncio.AbstractEventLoop] = []

    async def stepwise(args: Any, progress: Any) -> dict[str, Any]:
        loop.append(asyncio.get_running_loop())
        progress(0, 0, "")
        while done := await steps.get():
            progress(done, 3, "")
        return {}

    server.bench.handlers[Op.STATS] = stepwise
    with RawClient(server.path) as client:
        assert client.ask(Call(1, "cache.stats")) == Progress(1, 0, 0)
        for done in (1, 2, 3):
            loop[0].call_soon_threadsafe(steps.put_nowait, done)
            assert client.receive() == Progress(1, done, 3)
        loop[0].call_soon_threadsafe(steps.put_nowait, 0)
        assert client.receive() == Result(1, {})


def test_progress_after_the_end_is_not_sent(server: Served) -> None:
    sinks: list[Any] = []

    async def leaky(args: Any, progress: Any) -> dict[str, Any]:
        sinks.append((asyncio.get_running_loop(), progress))
        return {}

    server.bench.handlers[Op.STATS] = leaky
    with RawClient(server.path) as client:
        assert client.ask(Call(1, "cache.stats")) == Result(1, {})
        loop, late = sinks[0]
        loop.call_soon_threadsafe(late, 1, 1, "late")
        assert client.ask(Call(2, "ping")) == Result(2, {"op": "ping", "args": {}})
