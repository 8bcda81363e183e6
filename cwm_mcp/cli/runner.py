"""The frame of every command: settings and arguments checked, one run of the operations, the result shown.

Errors end a command with their text on stderr: exit code 1, or 2 for a setting that can't work.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import wire
from cwm_connector.settings import Settings
from cwm_mcp.api import arguments as a
from cwm_mcp.api.client import OnProgress
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.results import as_content
from cwm_mcp.cli import complete, drawing, render  # noqa: F401 - drawing teaches render of what it draws
from cwm_mcp.settings import client_settings

_PIPE_WIDTH: Final = 240

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, as the MCP tools return it.")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", "-t", help="A tag for the new window. Repeat for several.", autocompletion=complete.tags),
]
WithTags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        "-t",
        help="Only windows with this tag. Repeat to require several.",
        autocompletion=complete.tags,
    ),
]
Description = Annotated[
    str | None,
    typer.Option("--description", "-d", help="A description of up to 2000 characters, for ls --search."),
]
Window = Annotated[str, typer.Argument(help="The window's name.", autocompletion=complete.windows)]
Limit = Annotated[int | None, typer.Option(help="The maximum number to list, 1 to 100.")]
Offset = Annotated[int | None, typer.Option(help="How many to skip at the start of the list.")]


def settings() -> Settings:
    try:
        return client_settings()
    except CWMError as problem:
        raise failed(problem, exit_code=2) from None


def failed(problem: CWMError, exit_code: int = 1) -> typer.Exit:
    print(problem, file=sys.stderr)
    return typer.Exit(exit_code)


def parsed(arguments: type[a.A], **values: Any) -> a.A:
    try:
        return a.parse(arguments, values)
    except CWMError as problem:
        raise failed(problem) from None


def run(work: Callable[[Operations], Awaitable[R]]) -> R:
    """One operation's result."""
    return _with_operations(work)


def follow(work: Callable[[Operations], Awaitable[None]]) -> None:
    """Work that shows what it finds itself."""
    _with_operations(work)


def _with_operations(work: Callable[[Operations], Awaitable[T]]) -> T:
    chosen = settings()

    async def whole() -> T:
        operations = Operations(chosen, client_name="cwm")
        try:
            return await work(operations)
        finally:
            await operations.aclose()

    try:
        return asyncio.run(whole())
    except CWMError as problem:
        raise failed(problem) from None


async def with_bar(label: str, hidden: bool, run: Callable[[OnProgress | None], Awaitable[R]]) -> R:
    """Runs an operation under a progress bar, where somebody watches; on stderr, which keeps stdout to the result."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def on_progress(update: wire.Progress) -> None:
            text = f"{label}: {update.text}" if update.text else label
            bar.update(task, completed=update.done, total=update.total or None, description=text)

        return await run(on_progress)


def print_result(result: BaseModel, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_content(result), ensure_ascii=False, indent=2))
    else:
        # In a pipe there is no width to keep to, and a broken line is hard to search.
        Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(render.of(result))
