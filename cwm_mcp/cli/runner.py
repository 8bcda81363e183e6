"""Run a command: check settings and arguments, call the operations, print the result.

An error ends the command with its message on stderr and exit code 1, or 2 for an invalid setting. Also holds the
options that several commands share.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import wire
from cwm_connector.settings import Settings
from cwm_mcp.api import arguments as a
from cwm_mcp.api.client import OnProgress
from cwm_mcp.api.operations import Operations
from cwm_mcp.cli import render, render_reports, shell_completion  # noqa: F401 - render_reports registers its renderers
from cwm_mcp.settings import client_settings

_PIPE_WIDTH: Final = 240
"""Columns of a table that is not printed to a terminal."""

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, as the MCP tools return it.")]
Tags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag", "-t", help="A tag for the new window. Repeat for several.", autocompletion=shell_completion.tags
    ),
]
WithTags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        "-t",
        help="Only windows with this tag. Repeat to require several.",
        autocompletion=shell_completion.tags,
    ),
]
Description = Annotated[
    str | None,
    typer.Option("--description", "-d", help="A description of up to 2000 characters, for ls --search."),
]
Window = Annotated[str, typer.Argument(help="The window's name.", autocompletion=shell_completion.windows)]
Limit = Annotated[int | None, typer.Option(help="The maximum number to list, 1 to 100.")]
Offset = Annotated[int | None, typer.Option(help="How many to skip at the start of the list.")]


def settings() -> Settings:
    """Return the settings. Raise `typer.Exit` with code 2 for an invalid one."""
    try:
        return client_settings()
    except CWMError as problem:
        raise failed(problem, exit_code=2) from None


def failed(problem: CWMError, exit_code: int = 1) -> typer.Exit:
    """Print the error to stderr and return the exception that ends the command."""
    print(problem, file=sys.stderr)
    return typer.Exit(exit_code)


def parsed(arguments: type[a.A], **values: Any) -> a.A:
    """Return the checked arguments of an operation. Raise `typer.Exit` with code 1 for an invalid one."""
    try:
        return a.parse(arguments, values)
    except CWMError as problem:
        raise failed(problem) from None


def run(work: Callable[[Operations], Awaitable[R]]) -> R:
    """Call an operation on a new event loop and return its result."""
    return _with_operations(work)


def run_until_done(work: Callable[[Operations], Awaitable[None]]) -> None:
    """Run work that prints its own results, on a new event loop."""
    _with_operations(work)


def _with_operations(work: Callable[[Operations], Awaitable[T]]) -> T:
    checked = settings()

    async def call_and_close() -> T:
        operations = Operations(checked, client_name="cwm")
        try:
            return await work(operations)
        finally:
            await operations.aclose()

    try:
        return asyncio.run(call_and_close())
    except CWMError as problem:
        raise failed(problem) from None


async def with_bar(label: str, hidden: bool, run: Callable[[OnProgress | None], Awaitable[R]]) -> R:
    """Run an operation with a progress bar on stderr, if stderr is a terminal. Only the result goes to stdout."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def on_progress(update: wire.Progress) -> None:
            text = f"{label}: {update.text}" if update.text else label
            bar.update(task, completed=update.done, total=update.total or None, description=text)

        return await run(on_progress)


def print_result(result: msgspec.Struct, as_json: bool) -> None:
    """Print the result to stdout, as JSON or as a table."""
    if as_json:
        print(json.dumps(msgspec.to_builtins(result), ensure_ascii=False, indent=2))
    else:
        # A pipe has no width, and wrapped lines are hard to search.
        Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(render.renderable(result))
