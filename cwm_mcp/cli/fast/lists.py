"""`cwm ls`, `cwm show` and `cwm sessions`, as far as their options are simple."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import calls
from cwm_mcp.api.arguments import parse
from cwm_mcp.api.direct.reads import Reads
from cwm_mcp.cli.fast.printing import errors_as_json, mention_empty_home, print_error, print_result
from cwm_mcp.settings import client_settings


class Command(msgspec.Struct, frozen=True):
    """A command that is answered here: its question, and the arguments behind its options."""

    method: str
    arguments: type[calls.Args]
    texts: Mapping[str, str]
    numbers: Mapping[str, str]
    lists: Mapping[str, str]
    flags: Mapping[str, str]
    position: str | None = None
    """The argument that is given without an option."""


_FORM: Final = {"--json": "json", "--quiet": "quiet", "-q": "quiet"}
_PAGE: Final = {"--limit": "limit", "--offset": "offset"}
COMMANDS: Final[Mapping[str, Command]] = {
    "ls": Command(
        "list_windows",
        calls.ListArgs,
        texts={
            "--model": "model",
            "--search": "search",
            "--session": "session_id",
            "--after": "created_after",
            "--before": "created_before",
            "--sort": "sort_by",
            "--order": "sort_order",
        },
        numbers=_PAGE,
        lists={"--tag": "tags", "-t": "tags"},
        flags=_FORM,
    ),
    "show": Command(
        "status",
        calls.StatusArgs,
        texts={"--session": "session_id"},
        numbers={},
        lists={},
        flags={"--json": "json", "--chunks": "include_blocks", "--blocks": "include_blocks"},
        position="window_name",
    ),
    "sessions": Command(
        "sessions",
        calls.SessionsArgs,
        texts={"--state": "state_filter", "--model": "model"},
        numbers=_PAGE,
        lists={},
        flags=_FORM,
    ),
}


def answered(words: Sequence[str]) -> int | None:
    """Carry out the command and return its exit code, or return None for one that is not understood here."""
    command = COMMANDS.get(words[0]) if words else None
    values = None if command is None else understood(command, words[1:])
    if command is None or values is None:
        return None
    as_json, quiet = values.pop("json", False), values.pop("quiet", False)
    errors_as_json.set(as_json)
    try:
        settings = client_settings()
    except CWMError as problem:
        print_error(problem)
        return 2
    try:
        answer = getattr(Reads(settings, "cwm"), command.method)(parse(command.arguments, values))
    except CWMError as problem:
        from cwm_mcp.cli.wording import exit_code

        print_error(problem)
        return exit_code(problem)
    mention_empty_home(settings)
    print_result(answer, as_json, quiet)
    return 0


def understood(command: Command, words: Sequence[str]) -> dict[str, Any] | None:
    """Return the values of the command's arguments, or None where Typer has to read or to explain them."""
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in command.flags:
            values[command.flags[word]] = True
            continue
        if not word.startswith("-") and command.position is not None and command.position not in values:
            values[command.position] = word
            continue
        option, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not equals:
            value = rest.pop(0) if rest else "-"
        if not word.startswith("-") or (value.startswith("-") and not equals):
            return None
        if option in command.texts:
            values[command.texts[option]] = value
        elif option in command.lists:
            values.setdefault(command.lists[option], []).append(value)
        elif option in command.numbers and value.isascii() and value.isdecimal():
            values[command.numbers[option]] = int(value)
        else:
            return None
    return values
