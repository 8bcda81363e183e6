"""A real MCP client on a real `python -m cwm_mcp` over stdio, the way an agent starts it."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.support.engine import ROOT, Engine

Tool = Callable[..., Awaitable[dict[str, Any]]]


class ToolError(Exception):
    """A tool answered with an error: the contract's code, its one sentence, and what came beside them."""

    def __init__(self, text: str, detail: dict[str, Any]) -> None:
        super().__init__(text)
        self.text = text
        self.code = int(str(detail["code"]).removeprefix("CWM-"))
        self.message: str = detail["message"]
        self.retryable: bool = detail["retryable"]
        self.context: dict[str, Any] = detail["context"]


class Tools:
    """The tools: `await cwm.call("window_thaw", window_name="x")`, or as functions: `cwm.tool("window_thaw")`."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def tool(self, name: str) -> Tool:
        return partial(self.call, name)

    async def call(self, tool_name: str, /, **arguments: Any) -> dict[str, Any]:
        """The structured result. Raises: ToolError."""
        result = await self.client.call_tool(tool_name, arguments)
        text = "\n".join(block.text for block in result.content if block.type == "text")
        if result.is_error:
            raise ToolError(text, (result.meta or {})["cwm/error"])
        if not isinstance(result.structured_content, dict):
            raise TypeError(f"{tool_name} answered without structured content: {text}")
        return result.structured_content


@asynccontextmanager
async def mcp_client(engine: Engine) -> AsyncIterator[Tools]:
    """Enter and leave it in one task: the transport's cancel scopes ask for that, so it can't be an async fixture."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "cwm_mcp"],
        env={"CWM_HOME": str(engine.home), "CWM_VLLM_URL": engine.url},
        cwd=ROOT,
    )
    failed: Exception | None = None
    with (engine.folder / "mcp.log").open("a") as log:
        async with Client(stdio_client(server, errlog=log)) as client:
            try:
                yield Tools(client)
            except Exception as problem:
                # Through the transport's task groups it would come out as a group of groups.
                failed = problem
    if failed is not None:
        raise failed
