import asyncio
import contextlib
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwm_connector.control.connection import ConnectionLimits
from cwm_connector.control.server import ControlServer
from cwm_connector.control.thread import ControlThread
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Op
from cwm_connector.protocol.wire import (
    MAX_CALLS,
    MAX_FRAME_BYTES,
    Call,
    Cancel,
    Failure,
    FromEngine,
    Hello,
    Progress,
    Result,
    Welcome,
    encode,
)
from cwm_connector.store.lock import HomeLock
from tests.support.control import MODEL, PATIENCE_S, VERSION, Bench, RawClient, Served, Waiting, served, short_folder

NOBODY = 65534
_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """One server for the tests that leave it as it was; that it lives on is part of what they show."""
    with served() as server:
        yield server


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def failed(message: object, code: Code, id: int | None = None) -> Failure:
    """The message, shown to be this failure."""
    assert isinstance(message, Failure), message
    assert (message.code, message.id) == (code, id), message
    return message


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def assert_serving(path: Path) -> None:
    with RawClient(path) as client:
        assert client.ask(Call(7, "ping")) == Result(7, {"op": "ping", "args": {}})


# --- hello -----------------------------------------------------------------------------------------------------------


def test_a_hello_is_answered_with_version_pid_and_model(shared: Served) -> None:
    with RawClient(shared.path) as client:
        assert client.welcome == Welcome(1, VERSION, os.getpid(), MODEL)


def test_the_newest_common_version_is_chosen(shared: Served) -> None:
    with RawClient(shared.path, hello=False) as client:
        client.send(Hello(1, 9))
        welcome = client.receive()
    assert isinstance(welcome, Welcome)
    assert welcome.version == 1


@pytest.mark.parametrize(("oldest", "newest"), [(2, 3), (0, 0), (-4, -1), (9, 1)])
def test_a_client_without_a_common_version_is_told_both_ranges(shared: Served, oldest: int, newest: int) -> None:
    with RawClient(shared.path, hello=False) as client:
        client.send(Hello(oldest, newest))
        refusal = failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None
    assert f"{oldest} to {newest}" in refusal.message
    assert "1 to 1" in refusal.message


@pytest.mark.parametrize("first", [Call(1, "ping"), Cancel(1)])
def test_who_does_not_say_hello_first_is_refused(shared: Served, first: Call | Cancel) -> None:
    with RawClient(shared.path, hello=False) as client:
        client.send(first)
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None


def test_a_second_hello_ends_the_connection(shared: Served) -> None:
    with RawClient(shared.path) as client:
        client.send(Hello(1, 1))
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None


def test_a_client_that_says_nothing_is_dropped() -> None:
    with served(ConnectionLimits(hello_s=0.05)) as server, RawClient(server.path, hello=False) as client:
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None
        assert_serving(server.path)


# --- what is not the protocol ----------------------------------------------------------------------------------------

CALL = encode(Call(1, "ping"))[4:]
GARBAGE = {
    "empty": b"",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "nil": b"\xc0",
    "wrong tag": b"\x81\xa4type\xa5hallo",
    "no tag": b"\x81\xa2id\x01",
    "id of another type": b"\x83\xa4type\xa4call\xa2id\xa11\xa2op\xa4ping",
    "id missing": b"\x82\xa4type\xa4call\xa2op\xa4ping",
    "not utf-8": b"\x83\xa4type\xa4call\xa2id\x01\xa2op\xa2\xff\xfe",
    "too deep": b"\x84\xa4type\xa4call\xa2id\x01\xa2op\xa4ping\xa4args" + b"\x91" * 100_000 + b"\xc0",
    "promises four billion": b"\x84\xa4type\xa4call\xa2id\x01\xa2op\xa4ping\xa4args\xdd\xff\xff\xff\xff",
    "cut": CALL[:-1],
    "trailing": CALL + b"\x00",
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("after_hello", [True, False], ids=["after hello", "before hello"])
def test_garbage_costs_its_sender_the_connection_and_nobody_else(
    shared: Served, body: bytes, after_hello: bool
) -> None:
    with RawClient(shared.path) as bystander, RawClient(shared.path, hello=after_hello) as client:
        client.send_bytes(frame(body))
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None
        assert bystander.ask(Call(1, "ping")) == Result(1, {"op": "ping", "args": {}})


@given(body=st.binary(max_size=300), after_hello=st.booleans())
@settings(deadline=None, max_examples=150)
def test_random_frames_are_answered_with_1003(shared: Served, body: bytes, after_hello: bool) -> None:
    with RawClient(shared.path, hello=after_hello) as client:
        client.send_bytes(frame(body))
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None
    assert_serving(shared.path)


@given(raw=st.binary(min_size=1, max_size=64))
@settings(deadline=None, max_examples=150)
def test_random_bytes_leave_the_server_serving(shared: Served, raw: bytes) -> None:
    with RawClient(shared.path) as client:
        with contextlib.suppress(BrokenPipeError):
            client.send_bytes(raw)
            client.end_of_sending()
        assert all(isinstance(answer, Failure) for answer in client.receive_all())
    assert_serving(shared.path)


@given(position=st.integers(0), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=150)
def test_a_call_with_one_wrong_byte_is_answered(shared: Served, position: int, byte: int) -> None:
    body = bytearray(encode(Call(1, "window.list", {"limit": 5, "tags": ["a"]}, 3.0))[4:])
    body[position % len(body)] = byte
    with RawClient(shared.path) as client:
        client.send_bytes(frame(bytes(body)))
        assert isinstance(client.receive(), Result | Failure)
    assert_serving(shared.path)


def test_a_frame_over_the_limit_is_refused_before_it_is_read(shared: Served) -> None:
    with RawClient(shared.path) as client:
        client.send_bytes((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        assert str(MAX_FRAME_BYTES) in failed(client.receive(), Code.ARGUMENT).message
        assert client.receive() is None
    assert_serving(shared.path)


def test_a_client_that_leaves_in_the_middle_of_a_frame_harms_nobody(shared: Served) -> None:
    with RawClient(shared.path) as client:
        client.send_bytes(frame(CALL)[:-3])
    assert_serving(shared.path)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("window.melt", {}),
        ("", {}),
        ("window.freeze", {}),
        ("window.freeze", {"session_id": "s", "window_name": 5}),
        ("window.freeze", {"session_id": "s", "window_name": "w", "colour": "red"}),
        ("window.list", {"limit": "5"}),
        ("window.list", {"tags": "a"}),
        ("window.list", None),
        ("ping", [1]),
        ("ping", {1: 2}),
    ],
)
def test_a_wrong_call_is_answered_with_1003_and_the_connection_goes_on(shared: Served, op: str, args: Any) -> None:
    with RawClient(shared.path) as client:
        failed(client.ask(Call(3, op, args)), Code.ARGUMENT, 3)
        assert isinstance(client.ask(Call(3, "ping")), Result)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("-inf")])
def test_a_time_limit_that_is_none_is_refused(shared: Served, timeout_s: float) -> None:
    with RawClient(shared.path) as client:
        failed(client.ask(Call(3, "ping", {}, timeout_s)), Code.ARGUMENT, 3)
        assert isinstance(client.ask(Call(4, "ping", {}, float("inf"))), Result)


def test_a_failure_does_not_repeat_megabytes_of_what_was_sent(shared: Served) -> None:
    with RawClient(shared.path) as client:
        answer = failed(client.ask(Call(1, "x" * (MAX_FRAME_BYTES - 100))), Code.ARGUMENT, 1)
        assert len(answer.message) < 10_000
        assert isinstance(client.ask(Call(2, "ping")), Result)


# --- calls -----------------------------------------------------------------------------------------------------------


def test_a_call_gets_its_arguments_checked_and_defaulted(shared: Served) -> None:
    with RawClient(shared.path) as client:
        answer = client.ask(Call(1, "window.tag", {"window_name": "w", "add": ["a"]}))
    assert answer == Result(
        1,
        {"op": "window.tag", "args": {"window_name": "w", "add": ["a"], "remove": [], "description": None}},
    )


def test_a_quick_call_overtakes_a_slow_one(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        client.send(Call(1, "cache.stats"), Call(2, "ping"))
        assert client.receive() == Result(2, {"op": "ping", "args": {}})
        slow.release()
        assert client.receive() == Result(1, {"released": True})


def test_an_id_in_use_ends_the_connection(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        client.send(Call(1, "cache.stats"))
        assert slow.started.wait(PATIENCE_S)
        client.send(Call(1, "ping"))
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None
    assert slow.cancelled.wait(PATIENCE_S)


def test_the_call_over_the_limit_is_told_to_wait(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        client.send(*(Call(id, "cache.stats") for id in range(MAX_CALLS)), Call(999, "ping"))
        assert failed(client.receive(), Code.BUSY, 999).retryable
        assert slow.started.wait(PATIENCE_S)
        slow.release()
        assert {client.receive().id for _ in range(MAX_CALLS)} == set(range(MAX_CALLS))  # type: ignore[union-attr]
        assert isinstance(client.ask(Call(999, "ping")), Result)


def test_the_client_over_the_limit_is_told_and_finds_room_later() -> None:
    with served(ConnectionLimits(connections=2)) as server, RawClient(server.path), RawClient(server.path) as second:
        with RawClient(server.path, hello=False) as third:
            assert failed(third.receive(), Code.BUSY).retryable
            assert third.receive() is None
        second.end_of_sending()
        assert second.receive() is None
        assert_serving(server.path)


def test_the_operations_own_failure_reaches_the_client_whole(server: Served) -> None:
    async def taken(args: Any, progress: Any) -> dict[str, Any]:
        raise CWMError(Code.WINDOW_EXISTS, "the name 'w' is taken; choose another", window_name="w")

    server.bench.handlers[Op.STATS] = taken
    with RawClient(server.path) as client:
        answer = client.ask(Call(1, "cache.stats"))
    assert answer == Failure(1, 3003, "the name 'w' is taken; choose another", False, {"window_name": "w"})


def test_an_unexpected_exception_is_9001_and_shows_nobody_its_text(
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


@pytest.mark.parametrize("value", [object(), 2**70, "\ud800"], ids=["object", "huge number", "surrogate"])
def test_an_answer_that_has_no_encoding_is_9001(server: Served, value: object) -> None:
    async def odd(args: Any, progress: Any) -> dict[str, Any]:
        return {"value": value}

    server.bench.handlers[Op.STATS] = odd
    with RawClient(server.path) as client:
        failed(client.ask(Call(1, "cache.stats")), Code.INTERNAL, 1)
        assert isinstance(client.ask(Call(2, "ping")), Result)


@pytest.mark.parametrize("value", [object(), "x" * MAX_FRAME_BYTES], ids=["object", "long"])
def test_a_failure_whose_context_cannot_be_sent_arrives_without_it(server: Served, value: object) -> None:
    async def odd(args: Any, progress: Any) -> dict[str, Any]:
        raise CWMError(Code.QUOTA, "the disk is full \ud800; free some room", value=value)

    server.bench.handlers[Op.STATS] = odd
    with RawClient(server.path) as client:
        answer = failed(client.ask(Call(1, "cache.stats")), Code.QUOTA, 1)
    assert answer.message == "the disk is full ?; free some room"
    assert answer.context == {}


def test_an_answer_over_the_frame_limit_is_9001_and_one_at_it_arrives(server: Served) -> None:
    async def sized(args: Any, progress: Any) -> dict[str, Any]:
        return {"value": "x" * int(args.component)}

    server.bench.handlers[Op.HEALTH] = sized
    around = len(encode(Result(1, {"value": "x" * (1 << 20)}))) - 4 - (1 << 20)
    with RawClient(server.path) as client:
        largest = MAX_FRAME_BYTES - around
        answer = client.ask(Call(1, "health", {"component": str(largest)}))
        assert isinstance(answer, Result)
        assert len(answer.value["value"]) == largest
        failed(client.ask(Call(1, "health", {"component": str(largest + 1)})), Code.INTERNAL, 1)
        assert isinstance(client.ask(Call(2, "ping")), Result)


# --- giving up -------------------------------------------------------------------------------------------------------


def test_a_cancelled_call_is_answered_with_6002(server: Served) -> None:
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


def test_a_call_over_its_time_is_cancelled_and_answered_with_6002(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        answer = failed(client.ask(Call(1, "cache.stats", {}, 0.02)), Code.OPERATION_TIMEOUT, 1)
    assert "0.02 s" in answer.message
    assert answer.retryable
    assert slow.cancelled.is_set()


@pytest.mark.parametrize("timeout_s", [None, 1000.0, float("inf")])
def test_the_engines_own_limit_bounds_every_call(timeout_s: float | None) -> None:
    with served(ConnectionLimits(call_s=0.02)) as server:
        slow = server.bench.handlers[Op.STATS] = Waiting()
        with RawClient(server.path) as client:
            failed(client.ask(Call(1, "cache.stats", {}, timeout_s)), Code.OPERATION_TIMEOUT, 1)
        assert slow.cancelled.is_set()


def test_an_operation_that_cancels_itself_is_9001(server: Served) -> None:
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


def test_what_is_shielded_comes_to_its_end_after_the_client_has_left(server: Served) -> None:
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


# --- progress, and who does not read ---------------------------------------------------------------------------------


def test_progress_is_coalesced_and_its_last_word_comes_before_the_result() -> None:
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


def test_progress_after_the_end_is_left_out(server: Served) -> None:
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


def big(size: int) -> Any:
    async def answer(args: Any, progress: Any) -> dict[str, Any]:
        return {"value": b"\0" * size}

    return answer


def test_a_client_that_does_not_read_is_dropped_and_holds_nobody_up() -> None:
    with served(ConnectionLimits(unread_s=0.1)) as server:
        server.bench.handlers[Op.METRICS] = big(12 << 20)
        waiting = server.bench.handlers[Op.STATS] = Waiting()
        with RawClient(server.path) as client, RawClient(server.path) as bystander:
            client.send(Call(1, "cache.stats"), Call(2, "metrics"))
            assert isinstance(bystander.ask(Call(1, "ping")), Result)
            assert waiting.cancelled.wait(PATIENCE_S)
            assert client.receive() is None  # the answer breaks off


def test_a_client_that_reads_slowly_gets_its_answer() -> None:
    with served(ConnectionLimits(unread_s=0.2)) as server:
        server.bench.handlers[Op.METRICS] = big(8 << 20)
        with RawClient(server.path) as client:
            client.send(Call(1, "metrics"))
            pace, taken = threading.Event(), 0
            while taken < 8 << 20:
                pace.wait(0.05)  # never set: being slow is what is tested; in all well over the limit
                part = client.socket.recv(1 << 20)
                assert part
                taken += len(part)


def test_two_hundred_calls_over_four_connections_are_each_answered_once(shared: Served) -> None:
    clients = [RawClient(shared.path) for _ in range(4)]
    for client in clients:
        client.send(*(Call(id, "session.list", {"limit": id}) for id in range(50)))
    for client in clients:
        answers = {answer.id: answer for answer in (client.receive() for _ in range(50)) if isinstance(answer, Result)}
        assert {id: answer.value["args"]["limit"] for id, answer in answers.items()} == {id: id for id in range(50)}
        client.socket.close()


# --- who may speak ---------------------------------------------------------------------------------------------------


def test_folder_and_socket_are_private_whatever_the_umask() -> None:
    before = os.umask(0)
    try:
        with served() as server:
            assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_the_socket_is_private_from_the_moment_it_is_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    class Watched(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            modes.append(stat.S_IMODE(Path(address).stat().st_mode))

    monkeypatch.setattr("cwm_connector.control.server.socket.socket", Watched)
    before = os.umask(0)
    try:
        with served(path=folder / "s"):
            pass
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_a_folder_that_was_there_is_left_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING), served(path=folder / "s"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777
    assert "chmod 700" in caplog.text


def said_to(uid: int, path: Path) -> bytes:
    """What a process of another user hears when it has said hello."""
    hears, says = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE_S)
                client.connect(str(path))
                with contextlib.suppress(OSError):
                    client.sendall(encode(Hello(1, 1)))
                os.write(says, client.recv(1 << 16))
        finally:
            os._exit(0)
    os.close(says)
    os.waitpid(child, 0)
    with os.fdopen(hears, "rb") as answer:
        return answer.read()


@_as_root
def test_another_user_is_refused_even_where_the_files_let_it_through(server: Served) -> None:
    server.path.parent.parent.chmod(0o711)
    server.path.parent.chmod(0o711)
    server.path.chmod(0o666)
    answer = msgspec.msgpack.decode(said_to(NOBODY, server.path)[4:], type=FromEngine)
    failed(answer, Code.NOT_ALLOWED)
    assert_serving(server.path)


@_as_root
def test_another_user_does_not_even_reach_the_socket(server: Served) -> None:
    server.path.parent.parent.chmod(0o711)
    assert said_to(NOBODY, server.path) == b""


# --- the path --------------------------------------------------------------------------------------------------------


def refused_start(path: Path) -> CWMError:
    with pytest.raises(CWMError) as refusal, served(path=path):
        pass
    return refusal.value


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    stale_socket(folder / "s")
    with served(path=folder / "s") as server:
        assert_serving(server.path)


def test_a_socket_that_is_served_is_left_alone(server: Served) -> None:
    refusal = refused_start(server.path)
    assert refusal.code is Code.STATE
    assert "CWM_SOCKET" in refusal.message
    assert_serving(server.path)


def test_a_regular_file_in_the_sockets_place_is_kept_and_the_start_refused(folder: Path) -> None:
    (folder / "s").write_text("precious")
    assert refused_start(folder / "s").code is Code.ARGUMENT
    assert (folder / "s").read_text() == "precious"


def test_a_symlink_in_the_sockets_place_is_refused_even_to_a_socket(folder: Path) -> None:
    stale_socket(folder / "real")
    (folder / "s").symlink_to(folder / "real")
    assert refused_start(folder / "s").code is Code.ARGUMENT
    assert (folder / "s").is_symlink()


@pytest.mark.parametrize("name", ["x" * 120, "file/s"], ids=["too long", "in a file"])
def test_a_path_that_can_hold_no_socket_is_refused_in_one_line(folder: Path, name: str) -> None:
    (folder / "file").write_text("")
    refusal = refused_start(folder / name)
    assert refusal.code is Code.ARGUMENT
    assert "CWM_SOCKET" in refusal.message


def test_the_socket_goes_with_its_server(folder: Path) -> None:
    with served(path=folder / "s") as server:
        assert server.path.exists()
    assert not (folder / "s").exists()


async def test_closing_cancels_the_calls_and_removes_the_socket(folder: Path) -> None:
    bench, waiting = Bench(), Waiting()
    bench.handlers[Op.STATS] = waiting
    server = ControlServer(folder / "s", bench, MODEL, VERSION)
    await server.start()
    with await asyncio.to_thread(RawClient, folder / "s") as client:
        client.send(Call(1, "cache.stats"))
        assert await asyncio.to_thread(waiting.started.wait, PATIENCE_S)
        await server.close()
        assert await asyncio.to_thread(client.receive) is None
    assert await asyncio.to_thread(waiting.cancelled.wait, PATIENCE_S)
    assert not (folder / "s").exists()


def test_a_server_does_not_remove_its_successors_socket(folder: Path) -> None:
    with contextlib.ExitStack() as first:
        first.enter_context(served(path=folder / "s"))
        (folder / "s").rename(folder / "away")
        with served(path=folder / "s"):
            first.close()
            assert_serving(folder / "s")


# --- the thread ------------------------------------------------------------------------------------------------------


def test_a_stopped_thread_has_ended_what_ran_on_it_and_stops_twice() -> None:
    thread, waiting = ControlThread(), Waiting()
    thread.start()
    work = thread.submit(waiting(None, lambda *_: None))
    assert waiting.started.wait(PATIENCE_S)
    thread.stop()
    assert waiting.cancelled.is_set()
    assert work.cancelled()
    thread.stop()


def test_a_thread_that_was_never_started_can_be_stopped() -> None:
    ControlThread().stop()


def test_a_start_that_fails_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("asyncio.events.new_event_loop", no_loop)
    with pytest.raises(OSError, match="Too many open files"):
        ControlThread().start()


# --- the store's lock ------------------------------------------------------------------------------------------------

HOLD = """
import os, sys
from pathlib import Path
from cwm_connector.store.lock import HomeLock
lock = HomeLock(Path(sys.argv[1]))
lock.acquire()
if "fork" not in sys.argv or os.fork() == 0:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the store's lock, and the id of its fork, or of itself."""
    command = [sys.executable, "-c", HOLD, str(home), *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_a_second_engine_is_told_who_has_the_store_and_the_first_is_unharmed(folder: Path) -> None:
    with holder(folder) as (first, _):
        with pytest.raises(CWMError) as refusal:
            HomeLock(folder).acquire()
        assert refusal.value.code is Code.STATE
        assert refusal.value.context == {"pid": first.pid}
        assert str(first.pid) in refusal.value.message
        assert "CWM_HOME" in refusal.value.message
        assert first.poll() is None
        assert (folder / "engine.lock").read_text() == str(first.pid)


def test_a_killed_engines_lock_is_free_at_once(folder: Path) -> None:
    with holder(folder) as (first, _):
        first.kill()
        first.wait()
        lock = HomeLock(folder)
        lock.acquire()
        assert (folder / "engine.lock").read_text() == str(os.getpid())
        lock.release()


def test_a_forked_child_does_not_keep_a_killed_engines_lock(folder: Path) -> None:
    with holder(folder, "fork") as (first, child):
        try:
            first.kill()
            first.wait()
            os.kill(child, 0)  # it lives
            lock = HomeLock(folder)
            lock.acquire()
            lock.release()
        finally:
            os.kill(child, 9)


def test_the_lock_file_is_private_and_its_lock_can_be_released_twice(folder: Path) -> None:
    (folder / "engine.lock").touch(0o644)
    first, second = HomeLock(folder), HomeLock(folder)
    first.acquire()
    assert stat.S_IMODE((folder / "engine.lock").stat().st_mode) == 0o600
    with pytest.raises(CWMError):
        second.acquire()
    second.release()
    with pytest.raises(CWMError):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_a_store_that_is_not_there_or_a_symlinked_lock_is_refused(folder: Path) -> None:
    (folder / "engine.lock").symlink_to(folder / "elsewhere")
    for home in (folder / "missing", folder):
        with pytest.raises(CWMError) as refusal:
            HomeLock(home).acquire()
        assert refusal.value.code is Code.WRITE_FAILED
    assert not (folder / "elsewhere").exists()
