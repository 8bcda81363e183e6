import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.control.connection import ConnectionLimits
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import ListArgs, NoArgs, Op, SessionsArgs, TokensArgs
from cwm_connector.protocol.wire import (
    MAX_CALLS,
    MAX_FRAME_BYTES,
    PROTOCOL_MAX,
    Failure,
    Hello,
    Progress,
    Result,
    Welcome,
    encode,
)
from cwm_mcp.api.client import ControlClient
from tests.support.control import PATIENCE_S, Served, Waiting, engine_process, served, short_folder

PONG = {"op": "ping", "args": {}}


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@asynccontextmanager
async def client_of(path: Path, grace_s: float = PATIENCE_S) -> AsyncIterator[ControlClient]:
    client = ControlClient(path, "test", grace_s=grace_s)
    try:
        yield client
    finally:
        await client.aclose()


async def happens(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, PATIENCE_S)


async def assert_failing(work: Any, code: Code) -> CWMError:
    with pytest.raises(CWMError) as failure:
        await work
    assert failure.value.code is code, failure.value
    return failure.value


# --- calls -----------------------------------------------------------------------------------------------------------


async def test_a_call_brings_the_operations_result(server: Served) -> None:
    async with client_of(server.path) as client:
        answer = await client.call(Op.TOKENS, TokensArgs("w"))
    assert answer == {"op": "window.tokens", "args": {"window_name": "w"}}


async def test_the_engines_failure_is_raised_as_it_is(server: Served) -> None:
    async def missing(args: Any, progress: Any) -> dict[str, Any]:
        raise CWMError(Code.WINDOW_NOT_FOUND, "no window named 'x'; window_list shows what there is", window_name="x")

    server.bench.handlers[Op.STATS] = missing
    async with client_of(server.path) as client:
        failure = await assert_failing(client.call(Op.STATS, NoArgs()), Code.WINDOW_NOT_FOUND)
        assert failure.message == "no window named 'x'; window_list shows what there is"
        assert failure.context == {"window_name": "x"}
        assert await client.call(Op.PING, NoArgs()) == PONG


async def test_progress_arrives_in_order_and_before_the_result(server: Served) -> None:
    seen: list[Progress] = []

    async def stepwise(args: Any, progress: Any) -> dict[str, Any]:
        for done in range(1, 101):
            progress(done, 100, "writing")
            await asyncio.sleep(0)
        return {}

    server.bench.handlers[Op.STATS] = stepwise
    async with client_of(server.path) as client:
        assert await client.call(Op.STATS, NoArgs(), on_progress=seen.append) == {}
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert seen[-1] == Progress(seen[-1].id, 100, 100, "writing")


async def test_a_fault_in_showing_progress_ends_nothing(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    async def reporting(args: Any, progress: Any) -> dict[str, Any]:
        progress(1, 1, "")
        return {}

    def broken(_: Progress) -> None:
        raise ZeroDivisionError

    server.bench.handlers[Op.STATS] = reporting
    async with client_of(server.path) as client:
        assert await client.call(Op.STATS, NoArgs(), on_progress=broken) == {}
    assert "ZeroDivisionError" in caplog.text


async def test_two_hundred_calls_at_once_share_one_connection_and_keep_apart() -> None:
    with served(ConnectionLimits(connections=1)) as server:
        running, most = 0, 0

        async def crowded(args: Any, progress: Any) -> dict[str, Any]:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return {"offset": args.offset}

        server.bench.handlers[Op.LIST] = crowded
        async with client_of(server.path) as client:
            answers = await asyncio.gather(*(client.call(Op.LIST, ListArgs(offset=n)) for n in range(200)))
    assert [answer["offset"] for answer in answers] == list(range(200))
    assert 1 < most <= MAX_CALLS


async def test_large_answers_side_by_side_are_never_too_many_calls(server: Served) -> None:
    async def large(args: Any, progress: Any) -> dict[str, Any]:
        return {"value": "x" * (1 << 20)}

    server.bench.handlers[Op.STATS] = large
    async with client_of(server.path) as client:
        answers = await asyncio.gather(*(client.call(Op.STATS, NoArgs()) for _ in range(3 * MAX_CALLS)))
    assert {len(answer["value"]) for answer in answers} == {1 << 20}


@pytest.mark.parametrize(
    "args",
    [
        ListArgs(search="x" * MAX_FRAME_BYTES),
        ListArgs(search="\ud800"),
        ListArgs(limit=2**70),
    ],
    ids=["too long", "surrogate", "huge number"],
)
async def test_arguments_that_fit_into_no_message_are_1003_and_other_calls_go_on(
    server: Served, args: ListArgs
) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    async with client_of(server.path) as client:
        calling = asyncio.create_task(client.call(Op.STATS, NoArgs()))
        assert await happens(slow.started)
        await assert_failing(client.call(Op.LIST, args), Code.ARGUMENT)
        slow.release()
        assert await calling == {"released": True}


# --- giving up -------------------------------------------------------------------------------------------------------


async def test_cancelling_the_caller_cancels_the_operation(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    async with client_of(server.path) as client:
        calling = asyncio.create_task(client.call(Op.STATS, NoArgs()))
        assert await happens(slow.started)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await happens(slow.cancelled)
        assert await client.call(Op.PING, NoArgs()) == PONG


async def test_the_engine_itself_says_that_the_time_is_over(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    async with client_of(server.path) as client:
        await assert_failing(client.call(Op.STATS, NoArgs(), timeout_s=0.02), Code.OPERATION_TIMEOUT)
    assert slow.cancelled.is_set()


async def test_an_answer_that_is_overdue_is_6001_and_the_operation_is_cancelled(server: Served) -> None:
    started, cancels, release = threading.Event(), threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def stubborn(args: Any, progress: Any) -> dict[str, Any]:
        loops.append(asyncio.get_running_loop())
        started.set()
        try:
            await release.wait()
        except asyncio.CancelledError:
            cancels.set()
            await release.wait()
        return {}

    server.bench.handlers[Op.STATS] = stubborn
    async with client_of(server.path, grace_s=0.05) as client:
        overdue = await assert_failing(client.call(Op.STATS, NoArgs(), timeout_s=0.05), Code.ENGINE_TIMEOUT)
        assert overdue.retryable
        assert await happens(cancels)
        loops[0].call_soon_threadsafe(release.set)
        # The late answer is nobody's, and disturbs nobody.
        assert await client.call(Op.PING, NoArgs(), timeout_s=PATIENCE_S) == PONG


async def test_the_client_sends_the_cancel_when_the_answer_is_overdue(folder: Path) -> None:
    """The other end is this test: it shows what the client writes to an engine that says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()

        def engine() -> bytes:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(PATIENCE_S)
                peer.sendall(encode(Welcome(1, "", 1, "")))
                heard = b""
                while b"cancel" not in heard:
                    heard += peer.recv(1 << 16)
                return heard

        listening = asyncio.create_task(asyncio.to_thread(engine))
        async with client_of(folder / "s", grace_s=0.02) as client:
            await assert_failing(client.call(Op.STATS, NoArgs(), timeout_s=0.02), Code.ENGINE_TIMEOUT)
            assert encode(Hello(1, PROTOCOL_MAX, "test")) in await listening


# --- an engine that is not there -------------------------------------------------------------------------------------


async def test_without_an_engine_the_failure_says_how_to_start_one(folder: Path) -> None:
    async with client_of(folder / "s") as client:
        failure = await assert_failing(client.call(Op.PING, NoArgs()), Code.ENGINE_UNREACHABLE)
    assert str(folder / "s") in failure.message
    assert "cwm serve" in failure.message
    assert "CWM_SOCKET" in failure.message
    assert failure.retryable


async def test_a_socket_that_a_killed_engine_left_is_unreachable(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "s"))
    async with client_of(folder / "s") as client:
        await assert_failing(client.call(Op.PING, NoArgs()), Code.ENGINE_UNREACHABLE)


@pytest.mark.parametrize("name", ["x" * 120, "file", "file/s"])
async def test_a_path_that_is_no_socket_is_unreachable(folder: Path, name: str) -> None:
    (folder / "file").write_text("")
    async with client_of(folder / name) as client:
        await assert_failing(client.call(Op.PING, NoArgs()), Code.ENGINE_UNREACHABLE)


async def test_a_killed_engine_fails_its_calls_and_its_successor_serves_the_same_client(folder: Path) -> None:
    async with client_of(folder / "s") as client:
        with engine_process(folder / "s") as engine:
            hanging = [asyncio.create_task(client.call(Op.SESSIONS, SessionsArgs(offset=n))) for n in range(3)]
            assert await client.call(Op.PING, NoArgs()) == PONG
            engine.kill()
            for call in hanging:
                failure = await assert_failing(call, Code.ENGINE_UNREACHABLE)
                assert "session.list" in failure.message
                assert "cwm serve" in failure.message
            await assert_failing(client.call(Op.PING, NoArgs()), Code.ENGINE_UNREACHABLE)
        with engine_process(folder / "s"):
            assert await client.call(Op.PING, NoArgs()) == PONG


async def test_an_engine_that_stands_still_is_6001_for_old_and_new_clients(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_mcp.api.client._WELCOME_S", 0.05)
    with engine_process(folder / "s") as engine:
        async with client_of(folder / "s", grace_s=0.05) as known, client_of(folder / "s") as fresh:
            await known.call(Op.PING, NoArgs(), timeout_s=PATIENCE_S)
            os.kill(engine.pid, signal.SIGSTOP)
            await assert_failing(known.call(Op.PING, NoArgs(), timeout_s=0.05), Code.ENGINE_TIMEOUT)
            await assert_failing(fresh.call(Op.PING, NoArgs()), Code.ENGINE_TIMEOUT)
            os.kill(engine.pid, signal.SIGCONT)
            assert await known.call(Op.PING, NoArgs(), timeout_s=PATIENCE_S) == PONG


async def test_a_restarted_server_finds_its_clients_again(folder: Path) -> None:
    async with client_of(folder / "s") as client:
        for _ in range(3):
            with served(path=folder / "s"):
                assert await client.call(Op.PING, NoArgs()) == PONG


# --- an engine that is another one -----------------------------------------------------------------------------------


async def test_an_engine_of_another_protocol_is_named_with_both_ranges(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_mcp.api.client.PROTOCOL_MIN", 7)
    monkeypatch.setattr("cwm_mcp.api.client.PROTOCOL_MAX", 8)
    async with client_of(server.path) as client:
        failure = await assert_failing(client.call(Op.PING, NoArgs()), Code.ARGUMENT)
    assert "7 to 8" in failure.message


@pytest.mark.parametrize(
    "answers",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        (5).to_bytes(4, "big") + b"hello",
        encode(Result(1, {})),
        encode(Welcome(1, "", 1, "")) + (5).to_bytes(4, "big") + b"hello",
        encode(Welcome(1, "", 1, "")) + b"\xff" * 4,
        encode(Welcome(1, "", 1, "")) * 2,
        b"",
    ],
)
async def test_what_is_no_engine_of_ours_is_unreachable(folder: Path, answers: bytes) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answers)
        await reader.read(1 << 16)
        writer.close()

    strangers = await asyncio.start_unix_server(stranger, folder / "s")
    async with strangers, client_of(folder / "s") as client:
        await assert_failing(client.call(Op.PING, NoArgs()), Code.ENGINE_UNREACHABLE)


async def test_a_connection_that_the_engine_gives_up_fails_all_its_calls_with_the_reason(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    async with client_of(server.path) as client:
        calls = [asyncio.create_task(client.call(Op.STATS, NoArgs())) for _ in range(2)]
        assert await happens(slow.started)
        connection = client._connection
        assert connection is not None
        connection._writer.write((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        failures = [await assert_failing(call, Code.ARGUMENT) for call in calls]
        assert failures[0] is not failures[1]
        assert await client.call(Op.PING, NoArgs()) == PONG


def test_a_failure_code_of_a_newer_engine_is_9001_with_its_number() -> None:
    error = Failure(1, 4242, "something new; update", False).error()
    assert error.code is Code.INTERNAL
    assert "4242" in error.message


# --- life ------------------------------------------------------------------------------------------------------------


async def test_closing_fails_what_waits_and_a_later_call_connects_again(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    async with client_of(server.path) as client:
        calling = asyncio.create_task(client.call(Op.STATS, NoArgs()))
        assert await happens(slow.started)
        await client.aclose()
        await assert_failing(calling, Code.ENGINE_UNREACHABLE)
        assert await happens(slow.cancelled)
        assert await client.call(Op.PING, NoArgs()) == PONG


def test_the_client_imports_nothing_heavy() -> None:
    script = (
        "import sys, cwm_mcp.api.client\n"
        "print([name for name in ('torch', 'vllm', 'lmcache', 'mcp', 'pydantic', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout == "[]\n"
