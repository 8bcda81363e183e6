"""Commands that look at windows and sessions, with or without an engine."""

from typing import Annotated

import typer

from cwm_mcp.api import arguments as a
from cwm_mcp.api.diff import parting_of
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.tree import WindowTree, all_windows, tree_of
from cwm_mcp.cli import complete
from cwm_mcp.cli.commands.frame import LOOKING, command
from cwm_mcp.cli.runner import Json, Limit, Offset, WithTags, parsed, print_result, run

app = typer.Typer()
Model = Annotated[str | None, typer.Option(help="Only those of this model, as vLLM serves it.")]


@command(
    app,
    LOOKING,
    "ls",
    examples=["cwm ls --tag planning --sort size", "cwm ls --search kickoff --after 2026-01-01 --json"],
)
def list_windows(
    tag: WithTags = None,
    model: Model = None,
    search: Annotated[str | None, typer.Option(help="Words in name, description and tags.")] = None,
    session: Annotated[
        str | None, typer.Option(help="Windows frozen from this session id.", autocompletion=complete.sessions)
    ] = None,
    after: Annotated[str | None, typer.Option(help="Created after this time, ISO 8601.")] = None,
    before: Annotated[str | None, typer.Option(help="Created before this time, ISO 8601.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="name, created_at (the default), token_count or size.", show_default=False)
    ] = None,
    order: Annotated[str | None, typer.Option(help="asc or desc (the default).")] = None,
    limit: Limit = None,
    offset: Offset = None,
    as_json: Json = False,
) -> None:
    """List windows; works without the engine.

    Shows 20 windows, the newest first, with their tokens, their size, and what of it is their own: the room that
    deleting one would give back. All conditions hold together.
    """
    args = parsed(
        a.ListArguments,
        tags=tag,
        model=model,
        search=search,
        session_id=session,
        created_after=after,
        created_before=before,
        sort_by=sort,
        sort_order=order,
        limit=limit,
        offset=offset,
    )
    print_result(run(lambda cwm: cwm.list_windows(args)), as_json)


@command(
    app,
    LOOKING,
    examples=["cwm show project-kickoff --blocks", "cwm show --session my-session --json"],
)
def show(
    window_name: Annotated[
        str | None, typer.Argument(help="The window's name.", autocompletion=complete.windows, show_default=False)
    ] = None,
    session: Annotated[
        str | None, typer.Option(help="Show this session instead of a window.", autocompletion=complete.sessions)
    ] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="List the stored blocks and the tier of each.")] = False,
    as_json: Json = False,
) -> None:
    """Show details of one window or session.

    Tokens, blocks, the tiers they lie in, times, and the window's parent and children. A window can be shown without
    the engine, and so can a session that was frozen or thawed once.
    """
    args = parsed(a.StatusArguments, window_name=window_name, session_id=session, include_blocks=blocks)
    print_result(run(lambda cwm: cwm.status(args)), as_json)


@command(app, LOOKING, examples=["cwm tree", "cwm tree project-kickoff", "cwm tree --json | jq '.roots[].name'"])
def tree(
    window_name: Annotated[
        str | None,
        typer.Argument(
            help="Only the tree in which this window stands.", autocompletion=complete.windows, show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw which window was made from which.

    Clones, and freezes of a session that a window was thawed into, hang under the window they go on from. Each shows
    its tokens, its size, what of it other windows share and what is its own. A window whose parent was deleted is a
    root that names it. Descendants beyond the twelfth generation stand side by side. Works without the engine.
    """
    if window_name is not None:
        parsed(a.TokensArguments, window_name=window_name)

    async def whole(cwm: Operations) -> WindowTree:
        return tree_of(await all_windows(cwm), window_name)

    print_result(run(whole), as_json)


@command(app, LOOKING, examples=["cwm diff idea-a idea-b", "cwm diff idea-a idea-b --context 200 --json"])
def diff(
    window_a: Annotated[str, typer.Argument(help="One window.", autocompletion=complete.windows)],
    window_b: Annotated[str, typer.Argument(help="The other one.", autocompletion=complete.windows)],
    context: Annotated[
        int, typer.Option(help="The most tokens shown before and behind the parting.", min=0, max=2000)
    ] = 40,
    as_json: Json = False,
) -> None:
    """Show where two windows part, in tokens and in text.

    Counts the leading tokens that are exactly the same, what only one of them has, and the blocks that are stored once
    for both; then shows the last common words and how each goes on. The text comes from vLLM: without it token ids are
    shown. The counts need neither vLLM nor the engine.
    """
    one, other = (parsed(a.TokensArguments, window_name=name).window_name for name in (window_a, window_b))
    print_result(run(lambda cwm: parting_of(cwm, one, other, context)), as_json)


@command(app, LOOKING, examples=["cwm sessions --state active", "cwm sessions --limit 100 --json"])
def sessions(
    state: Annotated[str | None, typer.Option(help="Only those that are active, frozen, thawed or expired.")] = None,
    model: Model = None,
    limit: Limit = None,
    offset: Offset = None,
    as_json: Json = False,
) -> None:
    """List sessions, last active first.

    The engine knows the sessions since its start, how many tokens they have and how many of these are still in the
    prefix cache. Without an engine the ones that were frozen or thawed are listed, as they were then.
    """
    args = parsed(a.SessionsArguments, state_filter=state, model=model, limit=limit, offset=offset)
    print_result(run(lambda cwm: cwm.sessions(args)), as_json)
