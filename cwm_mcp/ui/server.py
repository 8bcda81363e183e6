"""Serve the page's files and the JSON that it polls. Only GET is allowed."""

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api.http_address import Address
from cwm_mcp.ui.access import Access, Guard
from cwm_mcp.ui.overview import OverviewReader

_STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_STATUS: Final = {
    Code.ARGUMENT: 400,
    Code.WINDOW_NAME: 400,
    Code.WINDOW_NOT_FOUND: 404,
    Code.ENGINE_UNREACHABLE: 503,
    Code.ENGINE_TIMEOUT: 504,
}
_NUMBER: Final = re.compile(r"\d{1,9}", re.ASCII)
_SHUTDOWN_S: Final = 1
"""For requests in progress."""
LOOPBACK: Final = "127.0.0.1"


def run(settings: Settings, address: Address, on_ready: Callable[[str], None]) -> None:
    """Serve until a signal ends the process. Call `on_ready` with the address to open, which contains the token.

    Raise `Code.NOT_ALLOWED` for any host but 127.0.0.1, and `Code.ARGUMENT` for a port that is in use.
    """
    import uvicorn

    if address.host != LOOPBACK:
        raise CWMError(
            Code.NOT_ALLOWED,
            f"the page is served on {LOOPBACK} alone, not on {address.host}; from another machine, use ssh -L",
        )
    listener = address.listen()
    access = Access(port=listener.getsockname()[1])
    config = uvicorn.Config(
        build_app(settings, access),
        # A log of requests would contain the token.
        access_log=False,
        log_config=None,
        log_level="warning",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    on_ready(access.url)
    uvicorn.Server(config).run(sockets=[listener])


def build_app(settings: Settings, access: Access) -> ASGIApp:
    """Return the application, which answers only requests that `access` admits."""
    reader: OverviewReader | None = None

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        nonlocal reader
        reader = OverviewReader(settings)
        yield
        await reader.aclose()

    def running() -> OverviewReader:
        assert reader is not None  # requests arrive only between startup and shutdown
        return reader

    async def overview(request: Request) -> Response:
        return _json(msgspec.json.encode(await running().read()))

    async def window(request: Request) -> Response:
        return await _answer(running().window(request.path_params["name"]))

    async def text(request: Request) -> Response:
        first = request.query_params.get("from", "0")
        if not _NUMBER.fullmatch(first):
            return _failure(CWMError(Code.ARGUMENT, "from is the number of a token, from 0"))
        return await _answer(running().text(request.path_params["name"], int(first)))

    async def diff(request: Request) -> Response:
        return await _answer(running().diff(request.path_params["name"], request.query_params.get("with", "")))

    routes: list[BaseRoute] = [
        Route("/api/overview", overview),
        Route("/api/windows/{name}", window),
        Route("/api/windows/{name}/text", text),
        Route("/api/windows/{name}/diff", diff),
    ]
    return Guard(Starlette(routes=[*_files(), *routes], lifespan=lifespan), access)


async def _answer(reading: Awaitable[msgspec.Struct]) -> Response:
    """Return what was read, or the error as one line."""
    try:
        return _json(msgspec.json.encode(await reading))
    except CWMError as problem:
        return _failure(problem)


def _failure(problem: CWMError) -> Response:
    return Response(f"{problem}\n", status_code=_STATUS.get(problem.code, 500), media_type="text/plain; charset=utf-8")


def _json(text: bytes) -> Response:
    return Response(text, media_type="application/json")


def _files() -> list[BaseRoute]:
    """Return one route per file, read once at the start, so that no request's path ever reaches the disk."""
    return [
        Route("/" if path.name == "index.html" else f"/{path.name}", _file(path)) for path in sorted(_STATIC.iterdir())
    ]


def _file(path: Path) -> Callable[[Request], Response]:
    content, media_type = path.read_bytes(), _TYPES[path.suffix]

    def answer(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return answer
