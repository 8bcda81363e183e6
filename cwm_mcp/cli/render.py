"""Render results as tables for a terminal. An unknown value is a dash."""

from collections.abc import Mapping
from functools import singledispatch
from typing import Any, Final

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwm_connector.protocol import results as m
from cwm_connector.protocol import stats
from cwm_mcp.api.offline import WindowPassport
from cwm_mcp.cli.fast import answers
from cwm_mcp.cli.fast.parts import Fields, Line, Part, fields_of
from cwm_mcp.cli.units import in_words, size

_HASH_SHOWN: Final = 16
"""Characters of a chunk's hash."""
_COLOURS: Final = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


@singledispatch
def renderable(result: msgspec.Struct) -> RenderableType:
    """Return what Rich prints for a result: by default a table with one row per field."""
    laid_out = answers.details(result)
    return _fields(msgspec.to_builtins(result)) if laid_out is None else Group(*map(_drawn, laid_out))


def answer(result: msgspec.Struct) -> RenderableType:
    """Return the result with the sentence that says it, and what to type next, before its details."""
    laid_out = answers.answer(result)
    if laid_out is not None:
        return Group(*map(_drawn, laid_out))
    return Group(*map(_drawn, answers.spoken(result)), renderable(result))


@renderable.register
def _(result: m.Status) -> RenderableType:
    fields = _fields(_without(result, "blocks"))
    if result.blocks is None:
        return fields
    table = _table("chunk", "#tokens", "#size", "tier")
    for each in result.blocks:
        _row(table, each.hash[:_HASH_SHOWN], each.tokens, size(each.size_bytes), each.storage_tier)
    return Group(fields, table)


@renderable.register
def _(result: WindowPassport) -> RenderableType:
    return _fields(result.passport)


@renderable.register
def _(result: m.Verified) -> RenderableType:
    fields = _fields(_without(result, "bad"))
    if not result.bad:
        return fields
    table = _table("chunk", "tier", "fault", "repaired", "windows")
    for each in result.bad:
        repaired = "yes" if each.repaired else "no"
        _row(table, each.hash[:_HASH_SHOWN], each.storage_tier, each.fault, repaired, each.windows)
    return Group(fields, table)


@renderable.register
def _(result: m.Thawed) -> RenderableType:
    fields = _fields(_without(result, "reply"))
    if result.reply is None:
        return fields
    return Group(fields, Text(), *(_cell(line) if line else Text() for line in result.reply.splitlines()))


@renderable.register
def _(result: stats.Health) -> RenderableType:
    table = _table("component", "status", "message", "#latency")
    for each in result.components:
        latency = "-" if each.latency_ms is None else f"{each.latency_ms:.1f} ms"
        table.add_row(each.name, Text(each.status, _COLOURS[each.status]), _cell(each.message), latency)
    away = any(each.name == "engine" and each.status == "unhealthy" for each in result.components)
    uptime = "no engine" if away else f"up {result.uptime_seconds} s"
    head = Text.assemble((result.status, _COLOURS[result.status]), f", {result.version}, {uptime}")
    return Group(head, table)


@renderable.register
def _(result: stats.Metrics) -> RenderableType:
    if result.metrics is None:
        return Text(result.text or "")
    table = _table("metric", "labels", "#value", "meaning")
    for each in result.metrics:
        labels = " ".join(f"{name}={value}" for name, value in each.labels.items())
        _row(table, each.name, labels, f"{each.value:g}", each.help)
    return table


def _without(result: msgspec.Struct, left_out: str) -> dict[str, Any]:
    """Return the result's fields but one, which is shown in another form."""
    values: dict[str, Any] = msgspec.to_builtins(result)
    values.pop(left_out, None)
    return values


def _fields(values: Mapping[str, Any]) -> Table:
    return _drawn_fields(fields_of(values))


def _drawn(part: Part) -> RenderableType:
    match part:
        case Line():
            style = "dim" if part.faint else ""
            return Text.assemble((part.title, "bold"), part.text) if part.title else Text(part.text, style)
        case Fields():
            return _drawn_fields(part)
    return part


def _drawn_fields(fields: Fields) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.rows:
        table.add_row(name, Text(value))
    return table


def _table(*columns: str) -> Table:
    """Return an empty table. A column whose name starts with `#` is aligned to the right and never wrapped.

    The first column is never wrapped either.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        numeric = name.startswith("#")
        table.add_column(
            name.removeprefix("#"),
            justify="right" if numeric else "left",
            no_wrap=numeric or number == 0,
            overflow="fold",
        )
    return table


def _row(table: Table, *values: object) -> None:
    table.add_row(*(_cell(value) for value in values))


def _cell(value: object) -> Text:
    """Return a value as plain text, never as markup or as control sequences for the terminal."""
    return Text(in_words(value))
