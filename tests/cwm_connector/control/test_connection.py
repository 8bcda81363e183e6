"""connection.py: the hello, messages that break the protocol, limits of one client, and clients that do not read."""

import contextlib
import os
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwm_connector.control.connection import ConnectionLimits
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Op
from cwm_connector.protocol.wire import (
    MAX_CALLS,
    MAX_FRAME_BYTES,
    Call,
    Cancel,
    Failure,
    Hello,
    Result,
    Welcome,
    encode,
)
from tests.support.control import (
    MODEL,
    PATIENCE_S,
    VERSION,
    RawClient,
    Served,
    Waiting,
    assert_serving,
    failed,
    frame,
    served,
)


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
def test_a_client_without_a_common_version_is_refused_with_both_ranges(
    shared: Served, oldest: int, newest: int
) -> None:
    with RawClient(shared.path, hello=False) as client:
        client.send(Hello(oldest, newest))
        refusal = failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None
    assert f"{oldest} to {newest}" in refusal.message
    assert "1 to 1" in refusal.message


@pytest.mark.parametrize("first", [Call(1, "ping"), Cancel(1)])
def test_a_client_that_does_not_say_hello_first_is_refused(shared: Served, first: Call | Cancel) -> None:
    with RawClient(shared.path, hello=False) as client:
        client.send(first)
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None


def test_a_second_hello_ends_the_connection(shared: Served) -> None:
    with RawClient(shared.path) as client:
        client.send(Hello(1, 1))
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None


def test_a_client_that_says_nothing_is_disconnected() -> None:
    with served(ConnectionLimits(hello_s=0.05)) as server, RawClient(server.path, hello=False) as client:
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None
        assert_serving(server.path)


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
def test_random_frames_are_answered_with_an_argument_error(shared: Served, body: bytes, after_hello: bool) -> None:
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
def test_a_wrong_call_is_answered_with_an_argument_error_and_the_connection_goes_on(
    shared: Served, op: str, args: Any
) -> None:
    with RawClient(shared.path) as client:
        failed(client.ask(Call(3, op, args)), Code.ARGUMENT, 3)
        assert isinstance(client.ask(Call(3, "ping")), Result)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("-inf")])
def test_an_impossible_time_limit_is_refused(shared: Served, timeout_s: float) -> None:
    with RawClient(shared.path) as client:
        failed(client.ask(Call(3, "ping", {}, timeout_s)), Code.ARGUMENT, 3)
        assert isinstance(client.ask(Call(4, "ping", {}, float("inf"))), Result)


def test_a_failure_does_not_repeat_megabytes_of_what_was_sent(shared: Served) -> None:
    with RawClient(shared.path) as client:
        answer = failed(client.ask(Call(1, "x" * (MAX_FRAME_BYTES - 100))), Code.ARGUMENT, 1)
        assert len(answer.message) < 10_000
        assert isinstance(client.ask(Call(2, "ping")), Result)


def test_an_id_in_use_ends_the_connection(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        client.send(Call(1, "cache.stats"))
        assert slow.started.wait(PATIENCE_S)
        client.send(Call(1, "ping"))
        failed(client.receive(), Code.ARGUMENT)
        assert client.receive() is None
    assert slow.cancelled.wait(PATIENCE_S)


def test_a_call_over_the_limit_is_refused_as_busy(server: Served) -> None:
    slow = server.bench.handlers[Op.STATS] = Waiting()
    with RawClient(server.path) as client:
        client.send(*(Call(id, "cache.stats") for id in range(MAX_CALLS)), Call(999, "ping"))
        assert failed(client.receive(), Code.BUSY, 999).retryable
        assert slow.started.wait(PATIENCE_S)
        slow.release()
        assert {client.receive().id for _ in range(MAX_CALLS)} == set(range(MAX_CALLS))  # type: ignore[union-attr]
        assert isinstance(client.ask(Call(999, "ping")), Result)


@pytest.mark.parametrize("value", [object(), 2**70, "\ud800"], ids=["object", "huge number", "surrogate"])
def test_an_answer_that_can_t_be_encoded_is_an_internal_error(server: Served, value: object) -> None:
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


def test_an_answer_over_the_frame_limit_is_an_internal_error_and_one_at_it_arrives(server: Served) -> None:
    async def sized(args: Any, progress: Any) -> dict[str, Any]:
        return {"value": "x" * int(args.window_name)}

    server.bench.handlers[Op.DELETE] = sized
    around = len(encode(Result(1, {"value": "x" * (1 << 20)}))) - 4 - (1 << 20)
    with RawClient(server.path) as client:
        largest = MAX_FRAME_BYTES - around
        answer = client.ask(Call(1, "window.delete", {"window_name": str(largest)}))
        assert isinstance(answer, Result)
        assert len(answer.value["value"]) == largest
        failed(client.ask(Call(1, "window.delete", {"window_name": str(largest + 1)})), Code.INTERNAL, 1)
        assert isinstance(client.ask(Call(2, "ping")), Result)


def big(size: int) -> Any:
    async def answer(args: Any, progress: Any) -> dict[str, Any]:
        return {"value": b"\0" * size}

    return answer


def test_a_client_that_does_not_read_is_disconnected_and_delays_nobody() -> None:
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
        client.send(*(Call(id, "session.list", {"offset": id}) for id in range(50)))
    for client in clients:
        answers = {answer.id: answer for answer in (client.receive() for _ in range(50)) if isinstance(answer, Result)}
        assert {id: answer.value["args"]["offset"] for id, answer in answers.items()} == {id: id for id in range(50)}
        client.socket.close()
