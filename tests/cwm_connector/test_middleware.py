"""middleware.py: which session a request is given, and that nothing else is touched.

Requests go through the real HTTP server that vLLM uses (uvicorn, FastAPI) where the header's way matters.
"""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.core.names import is_session_id, legal_session_id
from cwm_connector.core.speaker import parse_speaker
from cwm_connector.middleware import HEADER, SessionHeader

ROOT = Path(__file__).resolve().parents[2]
UUID = b"8b1f9c1e-6f0a-4a0e-9a53-0d5f3a2b7c11"
CLAUDE = (b"x-claude-code-session-id", UUID)
AGENT = (b"x-claude-code-agent-id", b"a1b2c3d4")


async def through(scope: dict[str, Any]) -> dict[str, Any]:
    """The scope as the application behind the middleware gets it."""
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    await SessionHeader(app)(scope, None, None)  # type: ignore[arg-type]
    return seen[0]


async def session_of(*headers: tuple[bytes, bytes]) -> bytes | None:
    """What vLLM would read as X-Session-ID: the first header of that name."""
    scope = await through({"type": "http", "headers": [(b"host", b"localhost"), *headers]})
    return next((value for name, value in scope["headers"] if name == HEADER), None)


async def test_claude_codes_session_is_the_session() -> None:
    assert await session_of(CLAUDE) == UUID


async def test_a_subagent_is_a_head_of_its_own_in_the_same_session() -> None:
    assert await session_of(AGENT, CLAUDE) == UUID + b"/a1b2c3d4"


@pytest.mark.parametrize("name", [b"session-id", b"session_id"])
async def test_codexs_session_is_the_session(name: bytes) -> None:
    assert await session_of((name, UUID)) == UUID


async def test_what_the_client_says_in_vllms_own_header_stays() -> None:
    for own in (b"mine", b"mine/head", b""):
        headers = [(HEADER, own), (b"session-id", UUID)]
        scope = await through({"type": "http", "headers": headers})
        assert (scope["headers"] is headers) == bool(own)


async def test_a_clients_own_header_wins_over_the_one_that_a_proxy_adds() -> None:
    for name, value in (CLAUDE, (b"thread-id", UUID), (b"x-openwebui-chat-id", UUID), (b"x-session-affinity", UUID)):
        for headers in ([(HEADER, b"proxy"), (name, value)], [(name, value), (HEADER, b"proxy")]):
            scope = await through({"type": "http", "headers": headers})
            assert [each for each in scope["headers"] if each[0] == HEADER] == [(HEADER, UUID)]


async def test_a_repeated_header_counts_once_and_first() -> None:
    assert await session_of(CLAUDE, (CLAUDE[0], b"other")) == UUID


@pytest.mark.parametrize("value", [b"", b" ", b"x" * 1025])
async def test_what_can_be_no_session_id_makes_none(value: bytes) -> None:
    assert await session_of((CLAUDE[0], value)) is None
    assert await session_of(CLAUDE, (AGENT[0], value)) == UUID


@pytest.mark.parametrize("value", ["alice@example.com", "no spaces", "a/b", "x" * 129, "ü", "\x00", "s;kind=side"])
async def test_an_illegal_id_becomes_the_same_legal_one_everywhere(value: str) -> None:
    legal = legal_session_id(value)
    assert legal is not None and is_session_id(legal)
    assert await session_of((CLAUDE[0], value.encode())) == legal.encode()
    assert await session_of(CLAUDE, (AGENT[0], value.encode())) == UUID + b"/" + legal.encode()


async def test_an_agent_without_a_session_is_nobody() -> None:
    assert await session_of(AGENT) is None
    assert await session_of(AGENT, (b"session-id", b"codex")) == b"codex"


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_other_kinds_of_connection_pass_untouched(kind: str) -> None:
    scope: dict[str, Any] = {"type": kind} if kind == "lifespan" else {"type": kind, "headers": [CLAUDE]}
    assert await through(scope) is scope
    assert scope.get("headers", [CLAUDE]) == [CLAUDE]


async def test_the_servers_own_list_of_headers_is_left_alone() -> None:
    headers = [CLAUDE]
    await through({"type": "http", "headers": headers})
    assert headers == [CLAUDE]


@given(st.lists(st.tuples(st.sampled_from([HEADER, CLAUDE[0], AGENT[0], b"session-id", b"x"]), st.binary())))
def test_no_header_makes_it_fail(headers: list[tuple[bytes, bytes]]) -> None:
    scope = asyncio.run(through({"type": "http", "headers": headers}))
    assert [each for each in scope["headers"] if each[0] != HEADER] == [each for each in headers if each[0] != HEADER]
    session = parse_speaker(dict(reversed(scope["headers"])).get(HEADER, b"").decode("latin-1"))
    assert session is None or session.session_id is None or is_session_id(session.session_id)


async def test_it_costs_microseconds() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    middleware = SessionHeader(app)
    headers = [*((f"x-header-{number}".encode(), b"value") for number in range(20)), AGENT, CLAUDE]
    took = []
    for _ in range(2000):
        began = time.perf_counter()
        await middleware({"type": "http", "headers": headers}, None, None)  # type: ignore[arg-type]
        took.append(time.perf_counter() - began)
    assert sorted(took)[len(took) // 2] < 50e-6


def test_it_loads_neither_torch_nor_vllm() -> None:
    code = "import sys, cwm_connector.middleware; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.split(".")[0] for name in loaded.split()}.isdisjoint({"torch", "vllm", "lmcache", "pydantic", "numpy"})


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()


@asynccontextmanager
async def serving() -> AsyncIterator[httpx.AsyncClient]:
    """FastAPI behind uvicorn, the middleware added as vLLM adds it; it answers what vLLM would take as the session."""
    app = FastAPI()

    @app.post("/v1/messages")
    async def messages(request: Request) -> dict[str, Any]:
        return {"session": request.headers.get("X-Session-ID"), "body": (await request.body()).decode()}

    app.add_middleware(SessionHeader)
    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="debug"))
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(20):
            await server.up.wait()
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await running


async def in_parts(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_the_header_arrives_through_the_server_and_nothing_of_a_request_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"Authorization": "Bearer s3cret-key", "X-Claude-Code-Session-Id": UUID.decode()}
    async with serving() as client:
        answer = await client.post("/v1/messages?beta=true", content="a s3cret prompt", headers=secrets)
        streamed = await client.post("/v1/messages", content=in_parts(b'{"system": "s3cret', b" and", b' long"}'))
    assert answer.json() == {"session": UUID.decode(), "body": "a s3cret prompt"}
    assert streamed.json()["body"] == '{"system": "s3cret and long"}'
    assert streamed.json()["session"].startswith(";opening=")
    assert "s3cret" not in caplog.text
