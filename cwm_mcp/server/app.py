"""The MCP server: the contract's tools, resources and prompts over one connection to the engine.

It starts without an engine and without asking for one: the connection is made at the first call that needs it, and
made again after the engine was away.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias, cast

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.types import Resource

from cwm_connector.settings import Settings
from cwm_connector.version import __version__
from cwm_mcp.api.operations import Operations
from cwm_mcp.server import completion, prompts, resources
from cwm_mcp.server.tools import TOOLS

_LogLevel: TypeAlias = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
_INSTRUCTIONS = (
    "Windows are named, durable snapshots of an LLM session's KV cache in vLLM: freeze to save, thaw to go on without "
    "prefill, clone to branch."
)


class WindowServer(MCPServer[Operations]):
    """The library's server, whose resources are also the windows that there are."""

    def __init__(self, operations: Operations, **options: Any) -> None:
        super().__init__(**options)
        self._operations = operations

    async def list_resources(self) -> list[Resource]:
        return [*await super().list_resources(), *await resources.newest(self._operations)]


async def _announce_list_changes(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Tell clients of the older protocol that lists can change. The library's `initialize` says that they don't."""
    result = await call_next(ctx)
    if ctx.method == "initialize" and isinstance(result, dict):
        result["capabilities"]["resources"]["listChanged"] = True
    return result


def build_server(settings: Settings, **options: Any) -> WindowServer:
    """Return the server, ready to run over a transport. `options` are passed on to the library."""
    operations = Operations(settings, client_name="cwm_mcp")

    @asynccontextmanager
    async def lifespan(server: MCPServer[Operations]) -> AsyncIterator[Operations]:
        try:
            yield operations
        finally:
            await operations.aclose()

    # At INFO it logs every question to vLLM, on the stderr that MCP clients show.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    server = WindowServer(
        operations,
        name="context-window-manager",
        version=__version__,
        instructions=_INSTRUCTIONS,
        tools=list(TOOLS),
        lifespan=lifespan,
        log_level=cast(_LogLevel, settings.log_level),
        middleware=[_announce_list_changes],
        **options,
    )
    for part in (resources, prompts, completion):
        part.register(server, operations)
    return server
