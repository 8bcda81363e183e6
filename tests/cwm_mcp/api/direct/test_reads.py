"""A question that is asked without an event loop gets the same answers and errors as one with it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import ListArgs, Op, SessionsArgs, StatusArgs
from cwm_connector.protocol.wire import Progress, Result, Welcome, encode
from cwm_connector.settings import Settings
from cwm_mcp.api.direct import socket_call
from cwm_mcp.api.direct.reads import Reads
from cwm_mcp.api.operations import Operations
from tests.cwm_mcp.canned import STATUS, canned_engine_on_a_thread


def asked_with_a_loop(settings: Settings, method: str, args: Any) -> Any:
    async def ask() -> Any:
        operations = Operations(settings, "test")
        try:
            return await getattr(operations, method)(args)
        finally:
            await operations.aclose()

    return asyncio.run(ask())


@contextmanager
def answering(settings: Settings, answers: bytes) -> Iterator[None]:
    """Listen on the control socket and write these bytes to the first client."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(settings.socket_path))
        listening.listen()

        def serve() -> None:
            peer, _ = listening.accept()
            with peer, suppress(ConnectionError):
                peer.sendall(answers)
                while peer.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("list_windows", ListArgs(limit=2)),
        ("status", StatusArgs(window_name="stem")),
        ("sessions", SessionsArgs()),
    ],
)
def test_the_catalog_answers_as_it_does_with_an_event_loop(
    filled: Path, settings: Settings, method: str, args: Any
) -> None:
    assert getattr(Reads(settings, "test"), method)(args) == asked_with_a_loop(settings, method, args)


def test_the_engine_is_asked_first(filled: Path, settings: Settings) -> None:
    with canned_engine_on_a_thread(settings, STATUS=STATUS) as engine:
        assert Reads(settings, "test").status(StatusArgs(window_name="w")).id == "w"
    assert engine.asked == [StatusArgs(window_name="w")]


def test_an_error_of_the_engine_is_raised_and_not_answered_by_the_catalog(filled: Path, settings: Settings) -> None:
    refused = CWMError(Code.BUSY, "later", window_name="w")
    with canned_engine_on_a_thread(settings, STATUS=refused), pytest.raises(CWMError) as raised:
        Reads(settings, "test").status(StatusArgs(window_name="stem"))
    assert (raised.value.code, raised.value.message) == (Code.BUSY, "later")


def test_progress_before_the_answer_is_skipped(home: Path, settings: Settings) -> None:
    with answering(settings, encode(Welcome(1, "", 1, "m")) + encode(Progress(1, 1, 2)) + encode(Result(1, STATUS))):
        assert Reads(settings, "test").status(StatusArgs(window_name="w")).token_count == 700


@pytest.mark.parametrize(
    "answers",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        (5).to_bytes(4, "big") + b"hello",
        encode(Result(1, {})),
        encode(Welcome(1, "", 1, "")) + b"\xff" * 4,
        encode(Welcome(1, "", 1, "")) * 2,
    ],
)
def test_what_is_no_engine_of_ours_is_not_asked(filled: Path, settings: Settings, answers: bytes) -> None:
    with answering(settings, answers), pytest.raises(CWMError) as raised:
        socket_call.call(settings.socket_path, "test", Op.LIST, ListArgs(), 1)
    assert raised.value.code is Code.ENGINE_UNREACHABLE and "control protocol" in raised.value.message


def test_an_engine_that_stands_still_is_not_waited_for(
    home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_call, "_WELCOME_S", 0.05)
    monkeypatch.setattr(socket_call, "_GRACE_S", 0)
    for answers in (b"", encode(Welcome(1, "", 1, "m"))):
        with answering(settings, answers), pytest.raises(CWMError) as raised:
            Reads(settings, "test", timeout_s=0.05).status(StatusArgs(window_name="w"))
        assert raised.value.code is Code.ENGINE_TIMEOUT
        settings.socket_path.unlink()
