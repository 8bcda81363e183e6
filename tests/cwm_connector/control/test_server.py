"""server.py: who may connect, and what may be at the socket's path."""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cwm_connector.control.connection import ConnectionLimits
from cwm_connector.control.server import ControlServer
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import NoArgs, Op
from cwm_connector.protocol.wire import (
    Call,
    FromEngine,
    Hello,
    Result,
    encode,
)
from cwm_mcp.api.client import ControlClient
from tests.support.control import (
    MODEL,
    PATIENCE_S,
    VERSION,
    Bench,
    RawClient,
    Served,
    Waiting,
    assert_serving,
    failed,
    served,
)

NOBODY = 65534
_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


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


def test_an_existing_folder_keeps_its_mode(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
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
def test_another_user_is_refused_even_if_file_modes_let_it_connect(server: Served) -> None:
    server.path.parent.parent.chmod(0o711)
    server.path.parent.chmod(0o711)
    server.path.chmod(0o666)
    answer = msgspec.msgpack.decode(said_to(NOBODY, server.path)[4:], type=FromEngine)
    failed(answer, Code.NOT_ALLOWED)
    assert_serving(server.path)


@_as_root
def test_another_user_can_t_reach_the_socket(server: Served) -> None:
    server.path.parent.parent.chmod(0o711)
    assert said_to(NOBODY, server.path) == b""


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


def test_a_regular_file_at_the_socket_s_path_is_kept_and_the_start_refused(folder: Path) -> None:
    (folder / "s").write_text("precious")
    assert refused_start(folder / "s").code is Code.ARGUMENT
    assert (folder / "s").read_text() == "precious"


def test_a_symlink_at_the_socket_s_path_is_refused_even_if_it_leads_to_a_socket(folder: Path) -> None:
    stale_socket(folder / "real")
    (folder / "s").symlink_to(folder / "real")
    assert refused_start(folder / "s").code is Code.ARGUMENT
    assert (folder / "s").is_symlink()


@pytest.mark.parametrize("name", ["x" * 120, "file/s"], ids=["too long", "in a file"])
def test_a_path_that_can_t_hold_a_socket_is_refused_in_one_line(folder: Path, name: str) -> None:
    (folder / "file").write_text("")
    refusal = refused_start(folder / name)
    assert refusal.code is Code.ARGUMENT
    assert "CWM_SOCKET" in refusal.message


def test_the_socket_is_removed_with_its_server(folder: Path) -> None:
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


def test_a_server_does_not_remove_its_successor_s_socket(folder: Path) -> None:
    with contextlib.ExitStack() as first:
        first.enter_context(served(path=folder / "s"))
        (folder / "s").rename(folder / "away")
        with served(path=folder / "s"):
            first.close()
            assert_serving(folder / "s")


def test_a_client_over_the_connection_limit_is_refused_while_all_others_wait() -> None:
    waiting = Waiting()
    with served(ConnectionLimits(connections=2)) as server, RawClient(server.path) as first:
        server.bench.handlers[Op.LIST] = waiting
        with RawClient(server.path) as second:
            for client in (first, second):
                client.send(Call(1, "window.list"))
            assert waiting.started.wait(PATIENCE_S)
            second.send(Call(2, "ping"))
            assert second.receive() == Result(2, {"op": "ping", "args": {}})
            with RawClient(server.path, hello=False) as third:
                assert failed(third.receive(), Code.BUSY).retryable
                assert third.receive() is None
            waiting.release()
            assert first.receive() == second.receive() == Result(1, {"released": True})
        assert_serving(server.path)


def test_the_client_that_was_idle_the_longest_gives_way() -> None:
    with served(ConnectionLimits(connections=2)) as server, RawClient(server.path) as first:
        with RawClient(server.path) as second:
            assert first.ask(Call(1, "ping")) == Result(1, {"op": "ping", "args": {}})
            assert_serving(server.path)
            assert second.receive() is None
        assert first.ask(Call(2, "ping")) == Result(2, {"op": "ping", "args": {}})


async def test_five_hundred_idle_clients_and_one_more_are_all_served() -> None:
    with served() as server:
        clients = [ControlClient(server.path, "idle") for _ in range(501)]
        for _ in range(2):  # the second call finds the connection gone
            for client in clients:
                assert await client.call(Op.PING, NoArgs(), timeout_s=PATIENCE_S) == {"op": "ping", "args": {}}
        await asyncio.gather(*(client.aclose() for client in clients))
