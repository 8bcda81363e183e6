"""`cwm policy`: show and change the auto-freeze policy."""

from typing import Annotated

import typer

from cwm_connector.protocol import calls
from cwm_connector.protocol.calls import Op
from cwm_connector.protocol.results import AutoFreezePolicy
from cwm_mcp.cli import shell_completion
from cwm_mcp.cli.commands.registration import ENGINE, command
from cwm_mcp.cli.runner import Json, ask, parsed, print_result

app = typer.Typer()


@command(app, ENGINE, examples=["cwm policy", "cwm policy --enable --idle 10 --keep-last 5", "cwm policy --reset"])
def policy(
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Turn auto-freeze on or off.")] = None,
    idle: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Freeze after this idle time; 0 for never.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Freeze after N more tokens; 0 for never.")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="The windows' names. May use {session_id}, {timestamp} and {generation}.")
    ] = None,
    keep_last: Annotated[
        int | None, typer.Option(metavar="N", help="Automatic windows to keep per session; 0 for all.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            "-t",
            help="A tag of automatic windows, besides auto. Repeat for several.",
            autocompletion=shell_completion.tags,
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Return to the CWM_AUTO_FREEZE_* settings.")] = False,
    as_json: Json = False,
) -> None:
    """Show or change the auto-freeze policy.

    When it is on, the engine freezes sessions that are idle, have grown, are about to be evicted, or would be lost in
    an orderly shutdown. Without options, only shows the policy. Changes survive restarts and override the settings.
    Options that you leave out keep their values.
    """
    args = parsed(
        calls.PolicyArgs,
        enabled=enable,
        idle_timeout_minutes=idle,
        token_threshold=tokens,
        naming_pattern=pattern,
        keep_last=keep_last,
        tags=tag,
        reset=reset,
    )
    print_result(ask(AutoFreezePolicy, Op.POLICY, args), as_json)
