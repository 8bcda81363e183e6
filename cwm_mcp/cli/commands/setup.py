"""Commands for setting CWM up: what is wrong, and completion in the shell."""

import asyncio
import enum
from typing import Annotated

import typer
from typer._completion_shared import get_completion_script

from cwm_mcp.cli.commands.frame import SET_UP, command
from cwm_mcp.cli.runner import Json, print_result
from cwm_mcp.doctor.rounds import examine

app = typer.Typer()


class Shell(enum.StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@command(
    app,
    SET_UP,
    examples=["cwm doctor", "cwm doctor --json | jq '.checks[] | select(.status == \"error\")'"],
    exits={0: "nothing is wrong, or only warnings", 1: "an error was found"},
)
def doctor(as_json: Json = False) -> None:
    """Look for what is wrong, and say what to type next.

    Looks at the installed versions, the settings, CWM_HOME and the room on its disk, the engine's socket, vLLM over
    HTTP, its flags, the catalog, Redis and the Claude Code plugin, in this order. Nothing is changed, and no key,
    token or password is printed.
    """
    report = asyncio.run(examine())
    print_result(report, as_json)
    if report.status == "error":
        raise typer.Exit(1)


@command(
    app,
    SET_UP,
    examples=[
        "cwm completion bash >> ~/.bash_completion",
        "cwm completion zsh > ~/.zfunc/_cwm",
        "cwm completion fish > ~/.config/fish/completions/cwm.fish",
    ],
)
def completion(shell: Annotated[Shell, typer.Argument(help="The shell: bash, zsh or fish.")]) -> None:
    """Print the script that teaches a shell to complete cwm.

    It completes commands and options, the names of windows, tags and session ids. Names come from the catalog, without
    asking the engine; what can't be read offers nothing and says nothing.
    """
    print(get_completion_script(prog_name="cwm", complete_var="_CWM_COMPLETE", shell=shell.value))
