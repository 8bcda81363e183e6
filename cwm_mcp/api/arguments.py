"""The check of what a client gives as arguments, which answers with the contract's codes.

The MCP library hands a tool's arguments over unchecked (its own complaints carry no code), so that every wrong one ends
here: `Code.SESSION_ID` and `Code.WINDOW_NAME` for a wrong name, `Code.ARGUMENT` for anything else, wrong types and
missing or unknown arguments included. The arguments are the protocol's. Those that only a front end has are added here.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.speaker import check_session_id
from cwm_connector.protocol import calls
from cwm_mcp.api.coercion import Argument, arguments_of, coerced
from cwm_mcp.current_session import CURRENT, Caller, current_session

_NOBODY: Final = Caller()
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


class StatusArguments(calls.StatusArgs, frozen=True):
    """A window or a session, and the page of its blocks. Without a limit as many as a client shows."""

    limit: calls.Limit | None = None
    offset: calls.Offset = 0


class DeleteArguments(calls.DeleteArgs, frozen=True):
    """A deletion, and whether the person is asked first."""

    force: bool = False


class MetricsArguments(calls.Args, frozen=True):
    """The metrics to return, their form, and the page of them. Without a limit all."""

    format: Literal["json", "prometheus"] = "json"
    prefix: str | None = None
    limit: calls.Limit | None = None
    offset: calls.Offset = 0


A = TypeVar("A", bound=calls.Args)


def parse(arguments: type[A], raw: Mapping[str, Any], caller: Caller = _NOBODY) -> A:
    """Return the checked arguments, as `coerced` understands them. `caller` says what "current" is.

    Raises: `Code.SESSION_ID`, `Code.WINDOW_NAME` or `Code.ARGUMENT` for one that is wrong, missing or unknown.
    """
    known = arguments_of(arguments)
    given = coerced(arguments, raw)
    for name in given:
        if name not in known:
            names = ", ".join(known) or "none, so call it with {}"
            raise CWMError(
                Code.ARGUMENT, f"there is no argument {name[:_SHOWN]!r}; the arguments are: {names}", argument=name
            )
    try:
        parsed = msgspec.convert(given, arguments)
    except msgspec.ValidationError as problem:
        raise _complaint(str(problem), known, given) from None
    checked = {
        name: _real_session_id(value, caller) if argument.check is check_session_id else argument.check(value)
        for name, argument in known.items()
        if argument.check is not None and (value := getattr(parsed, name)) is not None
    }
    return msgspec.structs.replace(parsed, **checked)


def _real_session_id(text: str, caller: Caller) -> str:
    """Return the id itself. "current" stands for the conversation of the client that calls.

    An id that is not legal stays as it is. The engine makes it legal, and reads the head in `SESSION/HEAD`.
    """
    if text.strip().casefold() != CURRENT:
        check_session_id(text)
        return text
    current = current_session(caller)
    check_session_id(current)
    return current


def _complaint(problem: str, known: Mapping[str, Argument], given: Mapping[str, Any]) -> CWMError:
    """Return the error for a complaint of msgspec, which names a place but not what is expected there."""
    place = _PLACE.search(problem)
    name = next((each for each in place.groups() if each), "") if place else ""
    argument = known[name]
    right = f'write "{name}": {argument.example} and call again'
    if name not in given:
        return CWMError(Code.ARGUMENT, f"{name} is missing; {right}", argument=name)
    value = repr(given[name])
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return CWMError(Code.ARGUMENT, f"{name} must be {argument.expected}, not {shown}; {right}", argument=name)
