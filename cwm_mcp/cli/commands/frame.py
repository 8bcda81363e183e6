"""How a command stands in the help: its panel, its text, examples to copy, and exit codes where they matter."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import typer
from rich.markup import escape

F = TypeVar("F", bound=Callable[..., Any])

WINDOWS: Final = "Windows"
LOOKING: Final = "Looking"
STORE: Final = "Store"
ENGINE: Final = "Engine"
SET_UP: Final = "Set-up"


def command(
    app: typer.Typer,
    panel: str,
    name: str | None = None,
    *,
    examples: Sequence[str],
    exits: Mapping[int, str] | None = None,
    context: dict[Any, Any] | None = None,
) -> Callable[[F], F]:
    """Adds the function as a command. Its docstring is the help: a line that sums up, then what really happens."""

    def add(function: F) -> F:
        app.command(
            name,
            help=_flowing(function),
            epilog=_epilog(examples, exits or {}),
            rich_help_panel=panel,
            context_settings=context,
        )(function)
        return function

    return add


def _flowing(function: Callable[..., Any]) -> str:
    """The docstring without the line breaks of the source: the terminal has a width of its own."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return escape("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


def _epilog(examples: Sequence[str], exits: Mapping[int, str]) -> str:
    title = "Example" if len(examples) == 1 else "Examples"
    lines = [f"[bold]{title}[/bold]", *(f"  {escape(example)}" for example in examples)]
    if exits:
        lines += ["", "[bold]Exit codes[/bold]", *(f"  {code}  {escape(meaning)}" for code, meaning in exits.items())]
    return "\n".join(lines)
