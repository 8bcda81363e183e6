"""Print results to stdout and errors to stderr, for a person or as JSON."""

import json
import sys
from contextvars import ContextVar

import msgspec

from cwm_connector.core.errors import CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api.results import META_KEY, error_fields

errors_as_json: ContextVar[bool] = ContextVar("errors_as_json", default=False)
"""True once --json was read."""


def print_error(problem: CWMError) -> None:
    """Print an error in the shell's words, or as JSON after --json."""
    from cwm_mcp.cli.wording import in_shell_words

    shown = in_shell_words(problem)
    if errors_as_json.get():
        print(json.dumps({META_KEY: error_fields(shown)}, ensure_ascii=False), file=sys.stderr)
    else:
        print(shown, file=sys.stderr)


def print_result(result: msgspec.Struct, as_json: bool, quiet: bool = False) -> None:
    """Print the result to stdout: as JSON, only its names, or as a sentence and a table."""
    if as_json:
        print(json.dumps(msgspec.to_builtins(result), ensure_ascii=False, indent=2))
    elif quiet:
        from cwm_mcp.cli.sentences import essence

        print(*essence(result), sep="\n", end="\n" if essence(result) else "")
    else:
        _print_for_a_person(result)


def _print_for_a_person(result: msgspec.Struct) -> None:
    from cwm_mcp.cli.fast.drawing import PIPE_WIDTH, drawn

    text = drawn(result)
    if text is not None:
        print(text, end="")
        return
    from rich.console import Console

    from cwm_mcp.cli import render

    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(render.answer(result))


def mention_empty_home(settings: Settings) -> None:
    """Print a line to stderr if no engine has ever used the home. The commonest mistake is another CWM_HOME."""
    if not settings.catalog_path.exists() and not settings.socket_path.exists():
        print(f"nothing is stored in {settings.home} yet; is CWM_HOME that of the engine?", file=sys.stderr)
