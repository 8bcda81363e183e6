"""Run a command: check settings and arguments, call the operations, print the result.

An error ends the command with its message on stderr and exit code 1, or 2 for a wrong command line or an invalid
setting. With `--json` the error is JSON too. Also holds the options that several commands share.

Every command waits for this module, so it imports what some of them need where they need it: asyncio with the
operations, and Rich for what is printed.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import calls, wire
from cwm_connector.protocol.calls import Op
from cwm_connector.protocol.results import Answer
from cwm_connector.settings import Settings
from cwm_mcp.api import arguments as a
from cwm_mcp.api.direct.reads import Reads
from cwm_mcp.cli import shell_completion
from cwm_mcp.cli.fast.printing import errors_as_json, mention_empty_home, print_error, print_result
from cwm_mcp.cli.wording import exit_code as exit_code_of
from cwm_mcp.settings import client_settings

if TYPE_CHECKING:
    from cwm_mcp.api.client import OnProgress
    from cwm_mcp.api.operations import Operations

__all__ = ["print_result"]
A = TypeVar("A", bound=Answer)
R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")


def _remember_form(as_json: bool) -> bool:
    """Return the value of --json, after making it the form of errors too."""
    errors_as_json.set(as_json)
    return as_json


Json = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_remember_form,
        is_eager=True,
        help="Print the result, or the error, as JSON, as the MCP tools return it.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only names, one per line.")]
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


def failed(problem: CWMError, exit_code: int | None = None) -> typer.Exit:
    """Print the error to stderr and return the exception that ends the command.

    The exit code is 2 for a wrong command line and 1 for anything else, unless it is given.
    """
    print_error(problem)
    return typer.Exit(exit_code_of(problem) if exit_code is None else exit_code)


def parsed(arguments: type[a.A], **values: Any) -> a.A:
    """Return the checked arguments of an operation. Raise `typer.Exit` with code 2 for an invalid one."""
    try:
        return a.parse(arguments, values)
    except CWMError as problem:
        raise failed(problem) from None


def read(question: Callable[[Reads], R]) -> R:
    """Ask the engine or the catalog one question and return the answer."""
    checked = settings()
    try:
        result = question(Reads(checked, client_name="cwm"))
    except CWMError as problem:
        raise failed(problem) from None
    mention_empty_home(checked)
    return result


def ask(result: type[A], op: Op, args: calls.Args) -> A:
    """Have the engine carry out one operation, without an event loop and without progress, and return its result."""
    return read(lambda engine: engine.ask(result, op, args))


def run(work: Callable[["Operations"], Awaitable[T]]) -> T:
    """Call an operation on a new event loop and return its result."""
    return _with_operations(work)


def run_until_done(work: Callable[["Operations"], Awaitable[None]]) -> None:
    """Run work that prints its own results, on a new event loop."""
    _with_operations(work)


def _with_operations(work: Callable[["Operations"], Awaitable[T]]) -> T:
    import asyncio

    from cwm_mcp.api.operations import Operations

    checked = settings()

    async def call_and_close() -> T:
        operations = Operations(checked, client_name="cwm")
        try:
            return await work(operations)
        finally:
            await operations.aclose()

    try:
        result = asyncio.run(call_and_close())
    except CWMError as problem:
        raise failed(problem) from None
    mention_empty_home(checked)
    return result


async def with_bar(label: str, hidden: bool, run: Callable[["OnProgress | None"], Awaitable[R]]) -> R:
    """Run an operation with a progress bar on stderr, if stderr is a terminal. Only the result goes to stdout."""
    if hidden or not sys.stderr.isatty():
        return await run(None)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)

        def on_progress(update: wire.Progress) -> None:
            text = f"{label}: {update.text}" if update.text else label
            bar.update(task, completed=update.done, total=update.total or None, description=text)

        return await run(on_progress)
