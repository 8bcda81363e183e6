"""`cwm chat`: go on from a window in the terminal."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from cwm_connector.core.errors import CWMError
from cwm_mcp.api import arguments as a
from cwm_mcp.api.chat.talk import Talk, Turn
from cwm_mcp.api.operations import Operations
from cwm_mcp.cli import shell_completion
from cwm_mcp.cli.commands.registration import WINDOWS, command
from cwm_mcp.cli.runner import Window, failed, parsed, run, settings
from cwm_mcp.cli.units import printable

app = typer.Typer()
_SESSION_SHOWN: Final = 120
"""Characters of the window's name in that of the session."""


@command(
    app,
    WINDOWS,
    examples=["cwm chat project-kickoff", "echo 'Summarize this.' | cwm chat project-kickoff --session summary"],
    exits={0: "the conversation has ended", 1: "an error; in a pipe, also that of a single turn"},
)
def chat(
    window_name: Window,
    session: Annotated[
        str | None,
        typer.Option(
            help="The session id of the conversation; by default the window's name and -chat.",
            autocompletion=shell_completion.sessions,
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="The longest reply in tokens.", min=1, max=32_768)] = 1024,
) -> None:
    """Go on from a window in the terminal.

    Thaws the window into a session of its own, then sends each line that you type to the model and prints the reply
    while it is written. Every turn is sent as the exact tokens of all before it, so the window's KV is loaded and not
    computed. Ctrl-C ends a reply, Ctrl-D the conversation. The window does not change. Freeze the session to keep what
    was said. In a pipe, each line is a turn.
    """
    session_id = session or f"{window_name[:_SESSION_SHOWN]}-chat"
    args = parsed(a.ThawArguments, window_name=window_name, new_session_id=session_id)
    talk, sentence = _begin(args)
    typed = sys.stdin.isatty()
    print(f"{sentence} Ctrl-C ends a reply, Ctrl-D the conversation." if typed else sentence, file=sys.stderr)
    for line in _lines(typed):
        if not line.strip():
            continue
        try:
            turn = asyncio.run(talk.say(line, _show, max_tokens))
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)
        except CWMError as problem:
            ended = failed(problem)
            if not typed:
                raise ended from None
        else:
            print(flush=True)
            print(_figures(turn), file=sys.stderr)
    print(f"Next: cwm freeze {session_id}", file=sys.stderr)


def _begin(args: a.ThawArguments) -> tuple[Talk, str]:
    """Thaw the window. Return the conversation that begins with it, and a sentence about it."""
    checked = settings()

    async def thaw(cwm: Operations) -> tuple[Talk, str]:
        recorded = await cwm.token_ids(args.window_name)
        thawed = await cwm.thaw(args)
        loads = f"{thawed.restorable_tokens} of {thawed.token_count} tokens load instead of being computed"
        sentence = f"Thawed {thawed.window_name} into session {thawed.session_id}: {loads}."
        return Talk(checked, recorded, thawed.session_id, thawed.cache_salt), sentence

    return run(thaw)


def _lines(typed: bool) -> Iterator[str]:
    """Yield what the user says. A terminal shows where to type and lets the line be edited."""
    if not typed:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its keys
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\nCtrl-D ends the conversation.", file=sys.stderr)


def _show(text: str) -> None:
    print("\n".join(printable(line) for line in text.split("\n")), end="", flush=True)


def _figures(turn: Turn) -> str:
    cached = "" if turn.cached is None else f", {turn.cached} of them not computed again"
    return f"[{turn.prompt} tokens{cached}; {turn.generated} new]"
