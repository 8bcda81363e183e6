"""The contract's tools. Each docstring is the description that a model reads: it states what the schema does not."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
from mcp.server.elicitation import AcceptedElicitation, ElicitationResult
from mcp.server.mcpserver import Elicit, Resolve
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls, stats
from cwm_connector.protocol import results as m
from cwm_connector.protocol.wire import Progress
from cwm_mcp.api import arguments as a
from cwm_mcp.api.client import OnProgress
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.results import page_of
from cwm_mcp.server.contract_tool import ContractTool, ToolContext, contract_tool

_READS: Final = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ADDS: Final = ToolAnnotations(destructive_hint=False, open_world_hint=False)
_CHANGES: Final = ToolAnnotations(destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_DELETES: Final = ToolAnnotations(destructive_hint=True, open_world_hint=False)

R = TypeVar("R")


def _operations(ctx: ToolContext) -> Operations:
    return ctx.request_context.lifespan_context


async def _reporting(ctx: ToolContext, run: Callable[[OnProgress], Awaitable[R]]) -> R:
    """Run an operation and pass its progress on, in order, before the result."""
    updates: asyncio.Queue[Progress | None] = asyncio.Queue()

    async def pass_on() -> None:
        while (update := await updates.get()) is not None:
            await ctx.report_progress(update.done, update.total or None, update.text or None)

    passing = asyncio.create_task(pass_on())
    try:
        return await run(updates.put_nowait)
    finally:
        updates.put_nowait(None)
        await passing


async def _detached(work: Awaitable[R]) -> R:
    """Wait for `work`, which goes on when the client cancels the call, runs out of patience or leaves."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to read it
    return await asyncio.shield(task)


async def _notify_changed(ctx: ToolContext) -> None:
    """Notify clients of both protocol eras that the set of windows has changed."""
    await ctx.notify_resources_changed()
    await ctx.session.send_resource_list_changed()


@contract_tool(calls.FreezeArgs, m.Frozen, _ADDS)
async def window_freeze(args: calls.FreezeArgs, ctx: ToolContext) -> m.Frozen:
    """Save a session's KV cache as a new, durable window. The session goes on and can be frozen again under another
    name. session_id "current" is this conversation; head: one of several heads, else the conversation."""
    frozen = await _reporting(ctx, lambda report: _detached(_operations(ctx).freeze(args, report)))
    await _notify_changed(ctx)
    return frozen


@contract_tool(a.ThawArguments, m.Thawed, _ADDS)
async def window_thaw(args: a.ThawArguments, ctx: ToolContext) -> m.Thawed:
    """Restore a window into a session, by default the one it was frozen from. Requests with the returned session_id or
    cache_salt that begin with the window's tokens then skip their prefill. warning: what will be computed again.
    continuation_prompt: the user's next message; its answer (at most max_tokens) comes as reply."""
    return await _reporting(ctx, lambda report: _operations(ctx).thaw(args, report))


@contract_tool(calls.CloneArgs, m.Cloned, _ADDS)
async def window_clone(args: calls.CloneArgs, ctx: ToolContext) -> m.Cloned:
    """Branch a window: make a second, independent one over the same stored chunks. Description and tags are inherited
    unless given."""
    cloned = await _operations(ctx).clone(args)
    await _notify_changed(ctx)
    return cloned


@contract_tool(calls.ListArgs, m.WindowList, _READS)
async def window_list(args: calls.ListArgs, ctx: ToolContext) -> m.WindowList:
    """List windows. tags: all must match; search: words in name, description, tags; times ISO 8601."""
    return await _operations(ctx).list_windows(args)


@contract_tool(a.StatusArguments, m.Status, _READS)
async def window_status(args: a.StatusArguments, ctx: ToolContext) -> m.Status:
    """Show details of one window or one session; give exactly one of the two. limit and offset page its blocks."""
    status = await _operations(ctx).status(args)
    if status.blocks is None:
        return status
    page, more = page_of(status.blocks, args.offset, args.limit)
    return msgspec.structs.replace(status, blocks=page, has_more=more or None)


class Confirm(BaseModel):
    """The form of a deletion's question."""

    confirm: bool = Field(default=True, description="Delete the window")


async def ask_before_deleting(raw: dict[str, Any], ctx: ToolContext) -> Confirm | Elicit[Confirm]:
    """Ask the person, if the client can and there is something to delete. This protects nothing, because some clients
    answer for their user."""
    args = a.parse(a.DeleteArguments, raw)
    if args.force or not _can_ask(ctx):
        return Confirm()
    window = await _operations(ctx).live_status(calls.StatusArgs(window_name=args.window_name))
    if window.progress is not None:
        return Confirm()  # it is not there yet, and the call says so
    return Elicit(f"Delete window '{args.window_name}' ({window.token_count} tokens)? This can't be undone.", Confirm)


def _can_ask(ctx: ToolContext) -> bool:
    capabilities = ctx.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    # A client that names no mode means forms; one that names only URLs can't show ours.
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


@contract_tool(a.DeleteArguments, m.Deleted, _DELETES)
async def window_delete(
    args: a.DeleteArguments,
    ctx: ToolContext,
    answer: Annotated[ElicitationResult[Confirm], Resolve(ask_before_deleting)],
) -> m.Deleted:
    """Delete a window for good; chunks that other windows share stay. force skips the confirmation."""
    if not (isinstance(answer, AcceptedElicitation) and answer.data.confirm):
        raise CWMError(
            Code.STATE,
            f"window '{args.window_name}' was not deleted, the confirmation was refused; force=true deletes unasked",
            window_name=args.window_name,
        )
    deleted = await _operations(ctx).delete(args)
    await _notify_changed(ctx)
    return deleted


@contract_tool(calls.TagArgs, m.Tagged, _CHANGES)
async def window_tag(args: calls.TagArgs, ctx: ToolContext) -> m.Tagged:
    """Change a window's tags, description or name."""
    return await _operations(ctx).tag(args)


@contract_tool(calls.SessionsArgs, m.SessionList, _READS)
async def session_list(args: calls.SessionsArgs, ctx: ToolContext) -> m.SessionList:
    """List the engine's sessions, last active first, then those that were frozen or thawed before."""
    return await _operations(ctx).sessions(args)


@contract_tool(calls.NoArgs, stats.CacheStats, _READS)
async def cache_stats(args: calls.NoArgs, ctx: ToolContext) -> stats.CacheStats:
    """Show stored chunks and bytes by tier, hit rates here and in vLLM. null: unknown."""
    return await _operations(ctx).stats(args)


@contract_tool(calls.HealthArgs, stats.Health, _READS)
async def health_check(args: calls.HealthArgs, ctx: ToolContext) -> stats.Health:
    """Check the health of all components or of one, with what to do about it."""
    return await _operations(ctx).health(args)


@contract_tool(a.MetricsArguments, stats.Metrics, _READS)
async def get_metrics_data(args: a.MetricsArguments, ctx: ToolContext) -> stats.Metrics:
    """Return metric samples whose name begins with prefix."""
    return await _operations(ctx).metrics(args)


@contract_tool(calls.PolicyChange, m.AutoFreezePolicy, _CHANGES)
async def auto_freeze_policy(args: calls.PolicyChange, ctx: ToolContext) -> m.AutoFreezePolicy:
    """Read the auto-freeze policy, or change what is given. It freezes sessions that are idle, have grown by
    token_threshold, or are about to be lost; 0 is off. naming_pattern takes {session_id}, {timestamp}, {generation};
    keep_last: such windows per session, 0 for all."""
    return await _operations(ctx).policy(args)


TOOLS: Final[tuple[ContractTool, ...]] = (
    window_freeze,
    window_thaw,
    window_clone,
    window_list,
    window_status,
    window_delete,
    window_tag,
    session_list,
    cache_stats,
    health_check,
    get_metrics_data,
    auto_freeze_policy,
)
