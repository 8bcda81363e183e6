"""client.py: a freeze ends when its caller says so, and not because the caller's patience does."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import FreezeArgs, NoArgs, Op
from cwm_connector.protocol.wire import Welcome, encode
from cwm_mcp.api.client import ControlClient
from tests.support.control import PATIENCE_S, Served, Waiting, served, short_folder

FREEZE = FreezeArgs("s", "w")


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as server:
        yield server


@asynccontextmanager
async def client_of(path: Path, grace_s: float = PATIENCE_S) -> AsyncIterator[ControlClient]:
    client = ControlClient(path, "test", grace_s=grace_s)
    try:
        yield client
    finally:
        await client.aclose()


async def test_a_freeze_that_is_overdue_is_not_cancelled(server: Served) -> None:
    freezing = server.bench.handlers[Op.FREEZE] = Waiting()
    async with client_of(server.path) as client:
        with pytest.raises(CWMError) as overdue:
            await client.call(Op.FREEZE, FREEZE, timeout_s=0.02)
        assert overdue.value.code is Code.OPERATION_TIMEOUT
        assert overdue.value.context == {"carried_on": True}
        await client.call(Op.PING, NoArgs())
    assert not freezing.cancelled.is_set()


async def test_no_cancel_is_sent_for_a_freeze_that_the_engine_does_not_answer() -> None:
    heard, ended = bytearray(), asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(Welcome(1, "", 1, "")))
        while part := await reader.read(1 << 16):
            heard.extend(part)
        writer.close()
        ended.set()

    with short_folder() as folder:
        async with (
            await asyncio.start_unix_server(engine, folder / "s"),
            client_of(folder / "s", grace_s=0.02) as client,
        ):
            with pytest.raises(CWMError, match="CWM-6001"):
                await client.call(Op.FREEZE, FREEZE, timeout_s=0.02)
            await client.aclose()
            await ended.wait()
    assert b"window.freeze" in heard and b"cancel" not in heard


async def test_a_caller_that_is_cancelled_cancels_its_freeze(server: Served) -> None:
    freezing = server.bench.handlers[Op.FREEZE] = Waiting()
    async with client_of(server.path) as client:
        calling = asyncio.create_task(client.call(Op.FREEZE, FREEZE))
        assert await asyncio.to_thread(freezing.started.wait, PATIENCE_S)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await asyncio.to_thread(freezing.cancelled.wait, PATIENCE_S)
