"""The MCP server: the contract's tools over one connection to the engine.

It starts without an engine and without asking for one: the connection is made at the first call that needs it, and
made again after the engine was away.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, TypeAlias, cast

from mcp.server.mcpserver import MCPServer

from cwm_connector import __version__
from cwm_connector.settings import Settings
from cwm_mcp.operations import Operations
from cwm_mcp.tools import TOOLS

_LogLevel: TypeAlias = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
_INSTRUCTIONS = (
    "Windows are named, durable snapshots of an LLM session's KV cache in vLLM: freeze to save, thaw to go on without "
    "prefill, clone to branch."
)


def build_server(settings: Settings) -> MCPServer[Operations]:
    @asynccontextmanager
    async def lifespan(server: MCPServer[Operations]) -> AsyncIterator[Operations]:
        operations = Operations(settings, client_name="cwm_mcp")
        try:
            yield operations
        finally:
            await operations.aclose()

    return MCPServer(
        name="context-window-manager",
        version=__version__,
        instructions=_INSTRUCTIONS,
        tools=list(TOOLS),
        lifespan=lifespan,
        log_level=cast(_LogLevel, settings.log_level),
    )
