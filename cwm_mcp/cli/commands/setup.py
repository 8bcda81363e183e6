"""Commands for setting up CWM: diagnosis and shell completion."""

import asyncio
import enum
from typing import Annotated

import typer
from typer._completion_shared import get_completion_script

from cwm_mcp.cli import render_reports, shell_completion  # noqa: F401 - render_reports registers its renderers
from cwm_mcp.cli.commands.registration import SETUP, command
from cwm_mcp.cli.runner import Json, print_result
from cwm_mcp.doctor.checkup import run_checks

app = typer.Typer()


class Shell(enum.StrEnum):
    """A shell that `cwm completion` has a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@command(
    app,
    SETUP,
    examples=[
        "cwm doctor",
        "cwm doctor --against project-kickoff",
        "cwm doctor --json | jq '.checks[] | select(.status == \"error\")'",
    ],
    exits={0: "no problems, or only warnings", 1: "an error was found"},
)
def doctor(
    against: Annotated[
        str | None,
        typer.Option(
            help="Also compare this window's passport with the engine's.", autocompletion=shell_completion.windows
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find problems and show the command that fixes each.

    Checks the installed versions, the settings, CWM_HOME and the free space on its disk, the engine's socket, vLLM over
    HTTP, its flags, the catalog, Redis and the Claude Code plugin, in this order. Changes nothing, and never prints a
    key, token or password. With --against, names every property of the window that this engine does not have.
    """
    report = asyncio.run(run_checks(against))
    print_result(report, as_json)
    if report.status == "error":
        raise typer.Exit(1)


@command(
    app,
    SETUP,
    examples=[
        "cwm completion bash >> ~/.bash_completion",
        "cwm completion zsh > ~/.zfunc/_cwm",
        "cwm completion fish > ~/.config/fish/completions/cwm.fish",
    ],
)
def completion(shell: Annotated[Shell, typer.Argument(help="The shell: bash, zsh or fish.")]) -> None:
    """Print the script that sets up shell completion for cwm.

    Completes commands, options, window names, tags and session ids. Window names and tags come from the catalog, so
    they need no engine. Completion stays silent when something cannot be read.
    """
    print(get_completion_script(prog_name="cwm", complete_var="_CWM_COMPLETE", shell=shell.value))
