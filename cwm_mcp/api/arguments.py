"""The check of what a client gives as arguments, which answers with the contract's codes.

The MCP library hands a tool's arguments over unchecked (its own complaints carry no code), so that every wrong one ends
here: `Code.SESSION_ID` and `Code.WINDOW_NAME` for a wrong name, `Code.ARGUMENT` for anything else, wrong types and
missing or unknown arguments included. The arguments are the protocol's. Those that only a front end has are added here.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, inspect

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.speaker import check_session_id
from cwm_connector.protocol import calls

CURRENT: Final = "current"
CURRENT_VARIABLE: Final = "CLAUDE_CODE_SESSION_ID"
_SHOWN: Final = 80
"""Characters of a wrong value that an error repeats."""
_PLACE: Final = re.compile(r"`\$\.(\w+)|required field `(\w+)`")
"""The argument that a complaint of msgspec is about."""


class ThawArguments(calls.ThawArgs, frozen=True):
    """A thaw, and the user's next message to the model."""

    continuation_prompt: Annotated[str, Meta(min_length=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2048)] | None = None

    def __post_init__(self) -> None:
        """Raise `Code.ARGUMENT` for a length of the reply without a prompt to reply to."""
        if self.max_tokens is not None and self.continuation_prompt is None:
            raise CWMError(Code.ARGUMENT, "max_tokens is the length of a reply; give a continuation_prompt with it")


class DeleteArguments(calls.DeleteArgs, frozen=True):
    """A deletion, and whether the person is asked first."""

    force: bool = False


class MetricsArguments(calls.Args, frozen=True):
    """The metrics to return, and their form."""

    format: Literal["json", "prometheus"] = "json"
    prefix: str | None = None


A = TypeVar("A", bound=calls.Args)


@dataclass(frozen=True, slots=True)
class _Argument:
    """One argument, as the check sees it."""

    expected: str
    """Its type in words."""
    is_list: bool
    check: Callable[[Any], Any] | None


def parse(arguments: type[A], raw: Mapping[str, Any]) -> A:
    """Return the checked arguments. A null counts as left out, because many clients send every argument they know.

    Raises: `Code.SESSION_ID`, `Code.WINDOW_NAME` or `Code.ARGUMENT` for one that is wrong, missing or unknown.
    """
    known = _known(arguments)
    given = {name: value for name, value in raw.items() if value is not None}
    for name in given:
        if name not in known:
            names = ", ".join(known) or "none"
            raise CWMError(Code.ARGUMENT, f"there is no argument {name!r}; the arguments are: {names}", argument=name)
        if known[name].is_list:
            given[name] = _list_from_text(given[name])
    try:
        parsed = msgspec.convert(given, arguments)
    except msgspec.ValidationError as problem:
        raise _complaint(str(problem), known, given) from None
    checked = {
        name: argument.check(value)
        for name, argument in known.items()
        if argument.check is not None and (value := getattr(parsed, name)) is not None
    }
    return msgspec.structs.replace(parsed, **checked)


def _real_session_id(text: str) -> str:
    """Return the id itself. "current" stands for the conversation of the client that started this process.

    An id that is not legal stays as it is. The engine makes it legal, and reads the head in `SESSION/HEAD`.
    """
    if text != CURRENT:
        check_session_id(text)
        return text
    current = os.environ.get(CURRENT_VARIABLE)
    if not current:
        raise CWMError(
            Code.SESSION_ID,
            "this client does not say which session is the current one; pass its id, session_list shows them",
            session_id=text,
        )
    check_session_id(current)
    return current


def _list_from_text(value: object) -> object:
    """Return the list that some clients send as JSON text. Anything else is returned as it is."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


@functools.cache
def _known(arguments: type[calls.Args]) -> dict[str, _Argument]:
    kind = inspect.type_info(arguments)
    assert isinstance(kind, inspect.StructType)
    return {field.name: _argument(field.type) for field in kind.fields}


def _argument(kind: inspect.Type) -> _Argument:
    check = None
    while isinstance(kind, inspect.UnionType | inspect.Metadata):
        if isinstance(kind, inspect.Metadata):
            check = check or (kind.extra or {}).get(calls.CHECK)
            kind = kind.type
        else:
            (kind,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
    if check is check_session_id:
        check = _real_session_id
    return _Argument(_in_words(kind), isinstance(kind, inspect.ListType), check)


def _in_words(kind: inspect.Type) -> str:
    match kind:
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.IntType(ge=int(least), le=int(most)):
            return f"a whole number from {least} to {most}"
        case inspect.IntType(ge=int(least)):
            return f"a whole number of at least {least}"
        case inspect.IntType():
            return "a whole number"
        case inspect.FloatType():
            return "a number"
        case inspect.BoolType():
            return "true or false"
        case inspect.ListType():
            return "a list of texts"
        case inspect.StrType(min_length=int()):
            return "a text that is not empty"
        case _:
            return "a text"


def _complaint(problem: str, known: Mapping[str, _Argument], given: Mapping[str, Any]) -> CWMError:
    """Return the error for a complaint of msgspec, which names a place but not what is expected there."""
    place = _PLACE.search(problem)
    name = next((each for each in place.groups() if each), "") if place else ""
    if name not in given:
        return CWMError(Code.ARGUMENT, f"{name} is missing; give it and call again", argument=name)
    value = repr(given[name])
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return CWMError(
        Code.ARGUMENT, f"{name} must be {known[name].expected}, not {shown}; correct it and call again", argument=name
    )
