"""Lay out what the commonest commands print as tables, fields and lines, before anything draws them.

Rich takes longer to import than a list takes to read, so this module has no part of it. The values are structs of
msgspec, because Python takes two milliseconds to make a dataclass.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any, Final

import msgspec

from cwm_connector.protocol import results as m
from cwm_mcp.cli.table import Column, FittingTable
from cwm_mcp.cli.units import in_words, minute, size

_MODEL: Final = {False: (), True: (Column("model", shrinks=True, rank=4),)}
"""The model column, shown only if the rows have more than one model."""


class Line(msgspec.Struct, frozen=True):
    """One paragraph of text."""

    text: str = ""
    faint: bool = False
    title: str = ""
    """In bold, before the text."""


class Fields(msgspec.Struct, frozen=True):
    """The names and the values of fields, one row each."""

    rows: Sequence[tuple[str, str]]


Part = FittingTable | Fields | Line


@singledispatch
def parts(result: msgspec.Struct) -> Sequence[Part] | None:
    """Return what is printed for a result, from top to bottom, or None for one that only Rich lays out."""
    return None


@parts.register
def _(result: m.WindowList) -> Sequence[Part] | None:
    models = len({each.model for each in result.windows}) > 1
    table = FittingTable(
        (
            *(Column("window"), Column("tokens", numeric=True, rank=1), Column("size", numeric=True, rank=2)),
            *(Column("own", numeric=True, rank=6), Column("created", numeric=True, rank=3)),
            *(Column("parent", shrinks=True, rank=5), *_MODEL[models], Column("tags", shrinks=True, rank=4)),
        ),
    )
    for each in result.windows:
        table.add(
            *(each.name, each.token_count, size(each.size_bytes), size(each.unique_bytes), minute(each.created_at)),
            *(each.parent_window, *([each.model] if models else ()), each.tags),
        )
    return _page(table, len(result.windows), result.total)


@parts.register
def _(result: m.SessionList) -> Sequence[Part] | None:
    models = len({each.model for each in result.sessions}) > 1
    table = FittingTable(
        (
            *(Column("session"), Column("state", rank=3), Column("tokens", numeric=True, rank=1)),
            *(Column("cached", numeric=True, rank=5), Column("active", numeric=True, rank=2), *_MODEL[models]),
            *(Column("title", shrinks=True, rank=4), Column("windows", shrinks=True, rank=6)),
        )
    )
    for each in result.sessions:
        table.add(
            *(each.session_id, each.state, each.token_count, each.cached_tokens, minute(each.last_active_at)),
            *(*([each.model] if models else ()), each.title, each.windows),
        )
    choices = [
        Line(in_words(f"{each.session_id}: a freeze takes head {each.head}; {each.head_reason}{_heads(each)}"))
        for each in result.sessions
        if each.head is not None and (each.heads or 0) > 1
    ]
    return [*_page(table, len(result.sessions), result.total), *([Line()] if choices else []), *choices]


@parts.register
def _(result: m.Status) -> Sequence[Part] | None:
    if result.blocks is not None:
        return None
    values: dict[str, Any] = msgspec.to_builtins(result)
    values.pop("blocks", None)
    return [fields_of(values)]


def fields_of(values: Mapping[str, Any]) -> Fields:
    """Return the fields of a result, those within a field after its name and a dot."""
    return Fields([(name, in_words(_in_units(name, value))) for name, value in _flat(values)])


def _heads(session: m.SessionItem) -> str:
    """Return how to name the heads of a session to a command."""
    names = [f"{session.session_id}/{head}" for head in session.head_names or ()]
    return f". Its heads: {', '.join(names)}" if names else ""


def _page(table: FittingTable, shown: int, total: int) -> list[Part]:
    return [table, Line(f"{shown} of {total}", faint=True)] if shown < total or not total else [table]


def _in_units(name: str, value: object) -> object:
    """Return a field's value as a person reads it: sizes, shares and factors with their units."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("bytes"):
            return size(value)
        case float() if name.endswith("rate"):
            return f"{value:.1%}"
        case float() if name.endswith("ratio"):
            return f"{value:.1f} ×"
    return value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
