"""What goes wrong at the live engine's edges: the contract's code, one sentence, nothing lost, the engine alive."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cwm_connector.protocol.wire import MAX_FRAME_BYTES, Call, Failure, FromEngine, Hello, encode, read_frame
from tests.support.chunks import stored_bytes
from tests.support.engine import Engine, EngineDied
from tests.support.mcp_client import ToolError, Tools, mcp_client
from tests.support.talk import talked
from tests.support.texts import prompt_of


@asynccontextmanager
async def unharmed(engine: Engine) -> AsyncIterator[Tools]:
    """A client; afterwards the engine has the processes, the windows and the bytes that it had, and still answers."""
    processes = engine.processes()
    async with mcp_client(engine) as cwm:
        windows, stored = (await cwm.call("window_list"))["total"], stored_bytes(engine.home)
        yield cwm
        assert (await cwm.call("window_list"))["total"] == windows
        assert stored_bytes(engine.home) == stored
        await engine.api.complete("Still there?", 2)
        assert (await cwm.call("health_check", component="engine"))["status"] == "healthy"
    assert engine.processes() == processes


async def refused(cwm: Tools, tool: str, **arguments: Any) -> ToolError:
    with pytest.raises(ToolError) as refusal:
        await cwm.call(tool, **arguments)
    return refusal.value


WRONG: list[tuple[str, dict[str, Any], int]] = [
    ("window_freeze", {"session_id": "nobody", "window_name": "w"}, 2001),
    ("window_freeze", {"session_id": "a b", "window_name": "w"}, 2001),
    ("window_freeze", {"session_id": "", "window_name": "w"}, 1001),
    ("window_freeze", {"session_id": "s" * 1025, "window_name": "w"}, 1001),
    ("window_freeze", {"session_id": "live", "window_name": "../../etc/passwd"}, 1002),
    ("window_freeze", {"session_id": "live", "window_name": ".hidden"}, 1002),
    ("window_freeze", {"session_id": "live", "window_name": "w" * 129}, 1002),
    ("window_freeze", {"session_id": "live", "window_name": "a\0b"}, 1002),
    ("window_freeze", {"session_id": "live", "window_name": "live-1"}, 3003),
    ("window_freeze", {"session_id": "live", "window_name": "w", "tags": ["no spaces"]}, 1003),
    ("window_freeze", {"session_id": "live", "window_name": "w", "tags": {"one": 1}}, 1003),
    ("window_freeze", {"session_id": "live", "window_name": "w", "tags": [f"t{n}" for n in range(33)]}, 1003),
    ("window_freeze", {"session_id": "live", "window_name": "w", "description": "d" * 2001}, 1003),
    ("window_freeze", {"session_id": "live", "window_name": ["w"]}, 1003),
    ("window_freeze", {"session_id": 7, "window_name": "w"}, 2001),
    ("window_freeze", {"session_id": {"id": 7}, "window_name": "w"}, 1003),
    ("window_freeze", {"session_id": "live"}, 1003),
    ("window_thaw", {"window_name": "nothing"}, 2002),
    ("window_thaw", {"window_name": "live-1", "new_session_id": " "}, 1001),
    ("window_thaw", {"window_name": "live-1", "prewarm": "perhaps"}, 1003),
    ("window_clone", {"source_window": "nothing", "target_window": "w"}, 2002),
    ("window_clone", {"source_window": "live-1", "target_window": "live-1"}, 3003),
    ("window_clone", {"source_window": "live-1", "target_window": "w w"}, 1002),
    ("window_delete", {"window_name": "nothing", "force": True}, 2002),
    ("window_status", {"window_name": "nothing"}, 2002),
    ("window_status", {"session_id": "nobody"}, 2001),
    ("window_status", {}, 1003),
    ("window_status", {"window_name": "live-1", "session_id": "live"}, 1003),
    ("window_list", {"sort_by": "colour"}, 1003),
    ("window_list", {"limit": 0}, 1003),
    ("window_list", {"limit": "many"}, 1003),
    ("window_list", {"created_after": "yesterday"}, 1003),
    ("session_list", {"state_filter": "asleep"}, 1003),
]


async def test_every_wrong_argument_gets_its_code_and_changes_nothing(engine: Engine) -> None:
    await talked(engine.api, "live", 500, tokens=300, answer=4)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="live", window_name="live-1")
    async with unharmed(engine) as cwm:
        answers = [(tool, arguments, code, await refused(cwm, tool, **arguments)) for tool, arguments, code in WRONG]
    wrong = [(tool, arguments, code, got.text) for tool, arguments, code, got in answers if got.code != code]
    assert not wrong
    for *_, answer in answers:
        assert answer.text.startswith(f"CWM-{answer.code}: ")
        assert len(answer.message) > 20, f"says too little to act on: {answer.text}"
        assert "\n" not in answer.text, "one sentence"
        assert "Traceback" not in answer.text


async def test_a_session_that_has_not_one_full_block_is_refused(engine: Engine) -> None:
    block = await engine.api.block_tokens()
    await engine.api.complete(list(range(1000, 1000 + block // 2)), 1, session_id="too-short")
    async with unharmed(engine) as cwm:
        refusal = await refused(cwm, "window_freeze", session_id="too-short", window_name="too-short-1")
    assert refusal.code in (2001, 3001)


async def test_a_second_engine_on_the_same_store_refuses_and_the_first_lives(engine: Engine) -> None:
    second = Engine(replace(engine.options, home=engine.home), engine.launch)
    try:
        async with unharmed(engine):
            with pytest.raises(EngineDied):
                second.start()
        said = {line.partition("CWM-")[2] for line in second.log.read_text().splitlines() if "CWM-" in line}
    finally:
        second.close()
    assert len(said) == 1, f"not one clear line: {said}"
    (line,) = said
    assert line.startswith("3001: ")
    assert str(engine.home) in line, "it says which store is taken"


async def test_a_store_folder_that_vanishes_is_told_honestly_and_comes_back(engine: Engine) -> None:
    talk = await talked(engine.api, "homeless", 501, tokens=500, answer=4)
    chunks, aside = engine.home / "chunks", engine.home / "chunks-moved"
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="homeless", window_name="homeless-1")
        await talk.say(await prompt_of(engine.api, 502, 300), 4)
        chunks.rename(aside)
        try:
            refusal = await refused(cwm, "window_freeze", session_id="homeless", window_name="homeless-2")
            assert refusal.code in (4001, 5002), refusal.text
            assert (await refused(cwm, "window_status", window_name="homeless-2")).code == 2002
            health = await cwm.call("health_check", component="disk")
            assert health["status"] != "healthy"
            await engine.api.complete("Still there?", 2)
        finally:
            if chunks.exists():
                chunks.rmdir()
            aside.rename(chunks)
        again = await cwm.call("window_freeze", session_id="homeless", window_name="homeless-2")
        assert again["captured_tokens"] == talk.full_blocks(await engine.api.block_tokens())
        thawed = await cwm.call("window_thaw", window_name="homeless-1", new_session_id="home-again")
        assert not thawed["partial"]


GARBAGE = {
    "no frame": b"GET / HTTP/1.1\r\n\r\n",
    "no message": (4).to_bytes(4, "big") + b"\xff\xff\xff\xff",
    "too long": (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    "half a frame": (1000).to_bytes(4, "big") + b"half",
    "empty frame": (0).to_bytes(4, "big"),
    "another version": encode(Hello(min_version=90, max_version=91)),
    "no greeting": encode(Call(id=1, op="window.list")),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_on_the_socket_ends_that_connection_only(engine: Engine, garbage: bytes) -> None:
    async with unharmed(engine):
        reader, writer = await asyncio.open_unix_connection(engine.home / "engine.sock")
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(10):
            heard = []
            try:
                while True:
                    heard.append(msgspec.msgpack.decode(await read_frame(reader), type=FromEngine))
            except (asyncio.IncompleteReadError, ConnectionResetError):
                pass  # closed, as it should be
        writer.close()
    assert all(isinstance(message, Failure) for message in heard)


async def test_an_unknown_operation_is_refused_and_the_connection_goes_on(engine: Engine) -> None:
    async with unharmed(engine):
        reader, writer = await asyncio.open_unix_connection(engine.home / "engine.sock")
        writer.write(encode(Hello(1, 1)) + encode(Call(1, "window.shred")) + encode(Call(2, "ping", {"loud": True})))
        async with asyncio.timeout(10):
            answers = [msgspec.msgpack.decode(await read_frame(reader), type=FromEngine) for _ in range(3)]
        writer.write(encode(Call(3, "ping")))
        async with asyncio.timeout(10):
            pong = msgspec.msgpack.decode(await read_frame(reader), type=FromEngine)
        writer.close()
    failures = {answer.id: answer.code for answer in answers if isinstance(answer, Failure)}
    assert failures == {1: 1003, 2: 1003}
    assert not isinstance(pong, Failure)
