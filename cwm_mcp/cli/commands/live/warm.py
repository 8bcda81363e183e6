"""`cwm warm`: read windows into memory before somebody needs them."""

from typing import Annotated

import typer
from rich.console import RenderableType

from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_mcp.api.operations import Operations
from cwm_mcp.cli import render, shell_completion
from cwm_mcp.cli.commands.registration import WINDOWS, command
from cwm_mcp.cli.runner import Json, Quiet, parsed, print_result, run, with_bar
from cwm_mcp.cli.sentences import AllWarmed
from cwm_mcp.cli.table import Column, FittingTable

app = typer.Typer()


@command(
    app,
    WINDOWS,
    examples=["cwm warm project-kickoff", "cwm ls --quiet --tag daily | xargs cwm warm"],
    exits={0: "all of each window is in memory", 1: "an error, or not all of a window is in memory"},
)
def warm(
    names: Annotated[
        list[str],
        typer.Argument(help="Names of windows.", autocompletion=shell_completion.windows, metavar="WINDOW"),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Load windows into the memory tier, so that the next thaw is fast.

    Reads each window's chunks from disk or Redis and verifies them. Binds no session and makes no salt. What does not
    fit into memory is named. Later reads and freezes can push the chunks out again.
    """
    asked = [parsed(calls.WarmArgs, window_name=name) for name in names]

    async def warm_all(cwm: Operations) -> AllWarmed:
        return AllWarmed(windows=[await _warm(cwm, args, as_json or quiet) for args in asked])

    warmed = run(warm_all)
    print_result(warmed, as_json, quiet)
    if any(each.warning for each in warmed.windows):
        raise typer.Exit(1)


async def _warm(cwm: Operations, args: calls.WarmArgs, hidden: bool) -> m.Warmed:
    return await with_bar(f"warming {args.window_name}", hidden, lambda on: cwm.warm(args, on))


@render.renderable.register
def _(result: AllWarmed) -> RenderableType:
    table = FittingTable(
        (
            *(Column("window"), Column("tokens", numeric=True), Column("in memory", numeric=True)),
            *(Column("ms", numeric=True, rank=1), Column("warning", shrinks=True)),
        )
    )
    for each in result.windows:
        table.add(each.window_name, each.token_count, each.ready_tokens, each.duration_ms, each.warning)
    return table
