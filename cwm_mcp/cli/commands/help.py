"""`cwm help`: the help of a command, or what an error code means."""

from typing import Annotated

import typer

from cwm_connector.core.errors import CWMError
from cwm_mcp.cli.codes import explained
from cwm_mcp.cli.commands.registration import SETUP, command
from cwm_mcp.cli.runner import failed

app = typer.Typer()


@command(app, SETUP, "help", examples=["cwm help", "cwm help freeze", "cwm help 4003"])
def show_help(
    context: typer.Context,
    topic: Annotated[str | None, typer.Argument(help="A command, or the code of an error.", show_default=False)] = None,
) -> None:
    """Show the help of a command, or what an error code means.

    Without a topic, shows all commands. A code may be written as 4003 or as CWM-4003, as the error's message has it.
    """
    try:
        text = None if topic is None else explained(topic)
    except CWMError as problem:
        raise failed(problem) from None
    if text is not None:
        print(text)
        return
    parent = context.parent
    assert parent is not None
    group = parent.command
    chosen = None if topic is None else group.get_command(parent, topic)  # type: ignore[attr-defined]
    if topic is not None and chosen is None:
        raise typer.BadParameter(f"there is no command {topic!r}; cwm --help lists them")
    with typer.Context(chosen or group, info_name=topic, parent=parent if chosen else None) as shown:
        print(shown.get_help(), end="")
