"""Serve the engine's metrics to Prometheus at /metrics, and nothing else.

Each scrape asks the engine over its socket. Without an engine it answers with what the catalog knows, and
cwm_engine_up is 0. The samples hold counts, sizes and times, so no token is asked for. The default host is loopback.
"""

import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cwm_connector.core.errors import CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api import arguments as a
from cwm_mcp.api.http_address import Address, bracketed
from cwm_mcp.api.operations import Operations

_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def run(settings: Settings, address: Address, on_ready: Callable[[str], None]) -> None:
    """Serve until a signal ends the process. Call `on_ready` with the address to scrape.

    Raises: `Code.ARGUMENT` for an address that is taken or not this machine's.
    """
    import uvicorn

    listener = address.listen()
    config = uvicorn.Config(
        build_app(settings), access_log=False, log_config=None, log_level="warning", ws="none", server_header=False
    )
    on_ready(f"http://{bracketed(address.host)}:{listener.getsockname()[1]}/metrics")
    uvicorn.Server(config).run(sockets=[listener])


def build_app(settings: Settings) -> Starlette:
    """Return the application."""
    operations: Operations | None = None

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        nonlocal operations
        operations = Operations(settings, "metrics")
        yield
        await operations.aclose()

    async def metrics(request: Request) -> Response:
        assert operations is not None  # requests arrive only between startup and shutdown
        try:
            answer = await operations.metrics(a.MetricsArguments(format="prometheus"))
        except CWMError as problem:
            return PlainTextResponse(f"{problem}\n", status_code=503)
        return Response(answer.text or "", media_type=_TYPE)

    return Starlette(routes=[Route("/metrics", metrics)], lifespan=lifespan)
