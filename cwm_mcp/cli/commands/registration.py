"""Register a function as a command of `cwm`, with its help panel, help text, examples and exit codes."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import typer
from typer.core import TyperCommand

F = TypeVar("F", bound=Callable[..., Any])

WINDOWS: Final = "Windows"
INSPECT: Final = "Inspect"
STORAGE: Final = "Storage"
ENGINE: Final = "Engine"
SETUP: Final = "Setup"
_MARKUP: Final = re.compile(r"\[[a-z#/@][^\[]*?]")
"""A word in brackets that Rich would read as a style."""


class Command(TyperCommand):
    """A command whose help shows a switch without a type, because it takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with that of the help."""
        return without_types_of_switches(super().get_params(ctx))


def without_types_of_switches(parameters: Iterable[Any]) -> list[Any]:
    """Return the parameters. The help prints no type for those that are switched on by their name."""
    shown = list(parameters)
    for each in shown:
        if getattr(each, "is_flag", False):
            each.display_type_rich = _no_type
    return shown


def _no_type(ctx: Any) -> None:
    return None


def command(
    app: typer.Typer,
    panel: str,
    name: str | None = None,
    *,
    examples: Sequence[str],
    exits: Mapping[int, str] | None = None,
    context: dict[Any, Any] | None = None,
) -> Callable[[F], F]:
    """Return a decorator that adds the function to `app` as a command.

    The function's docstring becomes the help: a one-line summary, then a paragraph about what the command does.
    """

    def add(function: F) -> F:
        app.command(
            name,
            cls=Command,
            help=_help_text(function),
            epilog=_epilog(examples, exits or {}),
            rich_help_panel=panel,
            context_settings=context,
        )(function)
        return function

    return add


def escape(text: str) -> str:
    """Return the text as Rich's own function of this name would, which takes longer to import."""
    return _MARKUP.sub(r"\\\g<0>", text)


def _help_text(function: Callable[..., Any]) -> str:
    """Return the docstring with one line per paragraph, so that the text fills the terminal's width."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return escape("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


def _epilog(examples: Sequence[str], exits: Mapping[int, str]) -> str:
    title = "Example" if len(examples) == 1 else "Examples"
    # The empty first line keeps the indentation: Typer removes what all lines but the first have in common.
    lines = ["", f"[bold]{title}[/bold]", *(f"  {escape(example)}" for example in examples)]
    if exits:
        lines += ["", "[bold]Exit codes[/bold]", *(f"  {code}  {escape(meaning)}" for code, meaning in exits.items())]
    return "\n".join(lines)
