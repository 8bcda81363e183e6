"""`cwm policy`: what the engine freezes by itself, shown and changed."""

from typing import Annotated

import typer

from cwm_mcp.api import arguments as a
from cwm_mcp.cli import complete
from cwm_mcp.cli.commands.frame import ENGINE, command
from cwm_mcp.cli.runner import Json, parsed, print_result, run

app = typer.Typer()


@command(app, ENGINE, examples=["cwm policy", "cwm policy --enable --idle 10 --keep-last 5", "cwm policy --reset"])
def policy(
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Freeze sessions by themselves, or not.")
    ] = None,
    idle: Annotated[float | None, typer.Option(metavar="MINUTES", help="Silent for so long; 0: never.")] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Grown by so many tokens; 0: never.")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Windows' names, with {session_id}, {timestamp} and {generation}.")
    ] = None,
    keep_last: Annotated[int | None, typer.Option(metavar="N", help="Such windows for each session; 0: all.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", help="Put on such windows beside auto; repeatable.", autocompletion=complete.tags),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Forget all changes: what CWM_AUTO_FREEZE_* says.")] = False,
    as_json: Json = False,
) -> None:
    """Show or change the auto-freeze policy.

    With it on, the engine freezes sessions that are silent, have grown, are about to be evicted, or would be lost by an
    orderly shutdown. Without options it is only shown. Changes hold over restarts and win over the settings; what is
    not given stays.
    """
    args = parsed(
        a.PolicyChange,
        enabled=enable,
        idle_timeout_minutes=idle,
        token_threshold=tokens,
        naming_pattern=pattern,
        keep_last=keep_last,
        tags=tag,
        reset=reset,
    )
    print_result(run(lambda cwm: cwm.policy(args)), as_json)
