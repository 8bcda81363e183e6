"""Take arguments as clients send them: a number or a truth value as text, a list as JSON text, one text for a list.

Some models write every value as text, some fill in every argument they know, and some wrap the arguments once more.
What can mean one thing is taken so. Anything else is left as it is, and the strict check that follows refuses it with
an example of the right form. The types come from the protocol's structs, so a new argument needs nothing here.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from cwm_connector.protocol import calls

_TRUE: Final = frozenset({"true", "yes", "on", "1", "y", "t"})
_FALSE: Final = frozenset({"false", "no", "off", "0", "n", "f"})
_NOTHING: Final = frozenset({"", "null", "none", "undefined", "nil"})
"""Texts that say "not given" where no text is expected."""
_WRAPPERS: Final = frozenset({"args", "arguments", "input", "parameters", "params", "kwargs"})
_FILTERS: Final = (None, calls.check_component)
"""Checks of optional texts of which an empty one says "not given". An empty name is a mistake."""
_FILLERS: Final = frozenset({"random_string", "dummy", "placeholder", "unused", "no_args"})
"""Names that clients make up for a tool without arguments, because they can't send an empty object."""
_MAX_DIGITS: Final = 40
"""Characters of a number. The conversion of a longer one takes long."""
_WHOLE: Final = re.compile(r"[+-]?\d+")


class Argument(msgspec.Struct, frozen=True):
    """One argument, as the check sees it."""

    kind: inspect.Type
    """Its type, without the None of one that can be left out."""
    optional: bool
    check: Callable[[Any], Any] | None

    @property
    def expected(self) -> str:
        """Return the type in words."""
        return _in_words(self.kind)

    @property
    def example(self) -> str:
        """Return a right value as JSON."""
        return _example(self.kind)


@functools.cache
def arguments_of(kind: type[calls.Args]) -> Mapping[str, Argument]:
    """Return the arguments of an operation by name, in the order of the struct."""
    struct = inspect.type_info(kind)
    assert isinstance(struct, inspect.StructType)
    return {field.name: _argument(field) for field in struct.fields}


def coerced(arguments: type[calls.Args], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are given, under their own names, each as its type where that is plain.

    A null is left out, and so is an argument that does not exist and holds nothing.
    """
    known = arguments_of(arguments)
    given: dict[str, Any] = {}
    for sent, value in _unwrapped(raw, known).items():
        name = _own_name(sent, known, raw)
        if name in known:
            value = _value(value, known[name])
            if value is not None:
                given[name] = value
        elif value not in (None, "", [], {}) and not (name in _FILLERS and not known):
            given[name] = value
    return given


def _unwrapped(raw: Mapping[str, Any], known: Mapping[str, Argument]) -> Mapping[str, Any]:
    """Return what is inside `{"arguments": {…}}`, or the arguments as they are."""
    if len(raw) != 1:
        return raw
    (name, inner), *_ = raw.items()
    if name in known or name not in _WRAPPERS:
        return raw
    inner = _from_json(inner) if isinstance(inner, str) else inner
    return inner if isinstance(inner, dict) else raw


def _own_name(sent: str, known: Mapping[str, Argument], raw: Mapping[str, Any]) -> str:
    """Return the argument's name for `windowName` or `window-name`, unless the name itself is given too."""
    if sent in known:
        return sent
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", sent.strip()).replace("-", "_").replace(" ", "_").lower()
    return name if name in known and name not in raw else sent


def _value(value: object, argument: Argument) -> object:
    """Return the value as the argument's type, None for "not given", or the value as it is."""
    match argument.kind:
        case inspect.ListType():
            return _texts(value)
        case inspect.StrType(min_length=least):
            if value == "" and argument.optional and argument.check in _FILTERS and least is None:
                return None
            return _name(value)
    if isinstance(value, str) and value.strip().casefold() in _NOTHING:
        return None
    match argument.kind:
        case inspect.BoolType():
            return _truth(value)
        case inspect.IntType():
            return _whole(value)
        case inspect.FloatType():
            return _number(value)
        case inspect.LiteralType(values=values):
            return _choice(value, values)
    return value


def _name(value: object) -> object:
    """Return a whole number as text: a name such as 2026 comes without its quotes."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else value


def _truth(value: object) -> object:
    text = str(value).strip().casefold() if isinstance(value, str | int) else ""
    return True if text in _TRUE else False if text in _FALSE else value


def _whole(value: object) -> object:
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and _WHOLE.fullmatch(value.strip()):
        return int(value)
    number = _number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


def _number(value: object) -> object:
    """Return the number in a text. A decimal comma can mean two things, and NaN is no number."""
    if not isinstance(value, str) or len(value) > _MAX_DIGITS or "_" in value:
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _choice(value: object, choices: tuple[Any, ...]) -> object:
    if not isinstance(value, str):
        return value
    meant = value.strip().casefold().replace("-", "_").replace(" ", "_")
    return meant if meant in choices else value


def _texts(value: object) -> object:
    """Return the list: JSON text, `[one, two]`, `one, two` and one text alone stand for one."""
    if isinstance(value, str):
        text = value.strip()
        if text.casefold() in _NOTHING:
            return None
        listed = _from_json(text)
        if isinstance(listed, list | str):
            value = listed
        elif text[0] not in "[{":
            value = text.split(",")
        elif text[0] == "[" and text[-1] == "]" and not set("[]{}") & set(text[1:-1]):
            value = [part for part in text[1:-1].split(",") if part.strip()]
        else:
            return value
        if isinstance(value, str):
            value = [value]
        value = [_unquoted(part) for part in value]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return [_name(part) for part in value] if isinstance(value, list) else value


def _unquoted(part: object) -> object:
    if not isinstance(part, str):
        return part
    part = part.strip()
    return part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "'\"" else part


def _from_json(text: str) -> object:
    """Return the value in a JSON text, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _argument(field: inspect.Field) -> Argument:
    kind, check, optional = field.type, None, not field.required
    while isinstance(kind, inspect.UnionType | inspect.Metadata):
        if isinstance(kind, inspect.Metadata):
            check = check or (kind.extra or {}).get(calls.CHECK)
            kind = kind.type
        else:
            (kind,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
    return Argument(kind, optional and field.default is None, check)


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


def _example(kind: inspect.Type) -> str:
    match kind:
        case inspect.LiteralType(values=values):
            return json.dumps(values[0])
        case inspect.IntType():
            return "10"
        case inspect.FloatType():
            return "0.5"
        case inspect.BoolType():
            return "true"
        case inspect.ListType():
            return '["one", "two"]'
        case _:
            return '"text"'
