"""Make MCP tools from functions. Arguments, results and errors follow the contract here, in one place.

Results go out as structured content with the same in compact text. An error is text and `_meta`, and never structured
content: clients would check that against the result's schema and lose the code.
"""

import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import build_resolver_plans, find_resolved_parameters
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import ConfigDict

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.results import Answer
from cwm_mcp.api.arguments import A, parse
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.results import META_KEY, error_fields
from cwm_mcp.current_session import CURRENT, Caller, unknown_to_the_engine
from cwm_mcp.server.fitting import fitted
from cwm_mcp.server.schema import input_schema, output_schema

logger = logging.getLogger(__name__)

ToolContext = Context[Operations, Any]
R = TypeVar("R", bound=Answer)

_META: Final = {"anthropic/alwaysLoad": True}
"""Loading a tool in mid-conversation rewrites the prompt's head, and with it loses the prefix cache."""


class RawArguments(ArgModelBase):
    """Whatever the client sent, handed on as `raw`: the library's own check answers without a code."""

    model_config = ConfigDict(extra="allow")

    def model_dump_one_level(self) -> dict[str, Any]:
        return {"raw": dict(self.model_extra or {})}


class ContractTool(Tool):
    """A tool whose every failure carries a code of the contract."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        try:
            return await super().run(arguments, context, convert_result)
        except ToolError as wrapped:
            cause = wrapped.__cause__
            if isinstance(cause, CWMError):
                return failure(cause)
            # A traceback names code, not data: the arguments stay out of the log.
            logger.error("%s failed", self.name, exc_info=cause)
            return failure(CWMError(Code.INTERNAL, f"{self.name} failed inside the MCP server; see its log (stderr)"))


def contract_tool(
    arguments: type[A], result: type[R], hints: ToolAnnotations
) -> Callable[[Callable[..., Awaitable[R]]], ContractTool]:
    """Make a tool from `async def name(args, ctx, …) -> result`. A model reads its docstring.

    Further parameters are the library's resolved ones. The function raises CWMError for every failure.
    """

    def decorate(body: Callable[..., Awaitable[R]]) -> ContractTool:
        name = body.__name__

        async def call(raw: dict[str, Any], ctx: ToolContext, **resolved: Any) -> CallToolResult:
            args = parse(arguments, raw, _caller(ctx))
            try:
                return success(await body(args, ctx, **resolved), getattr(args, "offset", 0))
            except CWMError as problem:
                if problem.code is Code.SESSION_NOT_FOUND and CURRENT in raw.values():
                    raise unknown_to_the_engine(problem) from None
                raise

        asked = find_resolved_parameters(body)
        return ContractTool(
            fn=call,
            name=name,
            description=" ".join((inspect.getdoc(body) or "").split()),
            parameters=input_schema(arguments),
            fn_metadata=FuncMetadata(arg_model=RawArguments, output_schema=output_schema(result)),
            is_async=True,
            context_kwarg="ctx",
            resolved_params=dict(asked),
            resolver_plans=build_resolver_plans(asked, {"raw"}),
            annotations=hints,
            meta=_META,
        )

    return decorate


def _caller(ctx: ToolContext) -> Caller:
    """Return what the call says about its client."""
    hello = ctx.session.client_params
    return Caller(hello.client_info.name if hello is not None else "", ctx.request_context.meta)


def success(result: Answer, offset: int = 0) -> CallToolResult:
    """Return the result in a size that clients show. `offset` is where its list begins."""
    content = fitted(msgspec.to_builtins(result), offset)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=content)


def failure(error: CWMError) -> CallToolResult:
    return CallToolResult(
        is_error=True, content=[TextContent(type="text", text=str(error))], _meta={META_KEY: error_fields(error)}
    )
