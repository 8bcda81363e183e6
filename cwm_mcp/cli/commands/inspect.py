"""Commands that show windows and sessions, with or without an engine."""

from typing import Annotated

import typer

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_window_name
from cwm_connector.protocol import calls
from cwm_mcp.api.offline import OfflineCatalog, WindowPassport
from cwm_mcp.cli import shell_completion
from cwm_mcp.cli.commands.registration import INSPECT, command
from cwm_mcp.cli.runner import (
    Json,
    Limit,
    Offset,
    Quiet,
    WithTags,
    failed,
    parsed,
    print_result,
    read,
    settings,
)

app = typer.Typer()
Model = Annotated[str | None, typer.Option(help="Only those of this model, by the name vLLM serves.")]


@command(
    app,
    INSPECT,
    "ls",
    examples=["cwm ls --tag planning --sort size", "cwm ls --search kickoff --after 2026-01-01 --json"],
)
def list_windows(
    tag: WithTags = None,
    model: Model = None,
    search: Annotated[
        str | None, typer.Option(help="Only windows with these words, or parts of words, in name, text or tags.")
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(help="Only windows frozen from this session id.", autocompletion=shell_completion.sessions),
    ] = None,
    after: Annotated[str | None, typer.Option(help="Only windows created after this ISO 8601 time.")] = None,
    before: Annotated[str | None, typer.Option(help="Only windows created before this ISO 8601 time.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="Sort by name, created_at (default), token_count or size.", show_default=False)
    ] = None,
    order: Annotated[str | None, typer.Option(help="The sort order, asc or desc (default).")] = None,
    limit: Limit = None,
    offset: Offset = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List windows. Works without the engine.

    Shows 20 windows by default, newest first, with their tokens and size. The column "own" is the part of the size that
    no other window shares, which deleting the window would free. A window must match all given filters.
    """
    args = parsed(
        calls.ListArgs,
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
    print_result(read(lambda cwm: cwm.list_windows(args)), as_json, quiet)


@command(
    app,
    INSPECT,
    examples=[
        "cwm show project-kickoff --chunks",
        "cwm show project-kickoff --passport",
        "cwm show --session my-session --json",
    ],
)
def show(
    window_name: Annotated[
        str | None,
        typer.Argument(help="The window's name.", autocompletion=shell_completion.windows, show_default=False),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(help="Show this session instead of a window.", autocompletion=shell_completion.sessions),
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--chunks", "--blocks", help="List the stored chunks and the tier of each.")
    ] = False,
    passport: Annotated[
        bool, typer.Option("--passport", help="Show what an engine must have in common with the window to load it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show details of one window or session.

    Shows tokens, chunks, the tiers that hold them, times, and the window's parent and children. Works without the
    engine for every window, and for a session that was frozen or thawed before.
    """
    args = parsed(calls.StatusArgs, window_name=window_name, session_id=session, include_blocks=blocks)
    if passport:
        print_result(passport_of(window_name), as_json)
        return
    print_result(read(lambda cwm: cwm.status(args)), as_json)


def passport_of(name: str | None) -> WindowPassport:
    """Return a window's passport from the catalog, with or without an engine. Raises: typer.Exit."""
    try:
        if name is None:
            raise CWMError(Code.ARGUMENT, "--passport needs a window; cwm ls lists them")
        return OfflineCatalog(settings().catalog_path).passport(check_window_name(name))
    except CWMError as problem:
        raise failed(problem) from None


@command(app, INSPECT, examples=["cwm sessions --state active", "cwm sessions --limit 100 --json"])
def sessions(
    state: Annotated[str | None, typer.Option(help="Only active, frozen, thawed or expired sessions.")] = None,
    model: Model = None,
    limit: Limit = None,
    offset: Offset = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List sessions, last active first.

    Shows the sessions that the engine has seen since its start, with their tokens and how many of these are still in
    vLLM's prefix cache. Without the engine, shows the sessions that were frozen or thawed, as they were at that time.
    """
    args = parsed(calls.SessionsArgs, state_filter=state, model=model, limit=limit, offset=offset)
    print_result(read(lambda cwm: cwm.sessions(args)), as_json, quiet)
