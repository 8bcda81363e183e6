"""Results as tables for a terminal. An unknown value is a dash."""

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwm_mcp import models as m

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_COLOURS: Final = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


@singledispatch
def of(result: BaseModel) -> RenderableType:
    """Field by field, for the results that are one thing."""
    return _fields(result.model_dump())


@of.register
def _(result: m.WindowList) -> RenderableType:
    rows = [
        (
            each.name,
            ", ".join(each.tags),
            each.model,
            each.token_count,
            size(each.size_bytes),
            size(each.unique_bytes),
            each.storage_tier,
            each.state,
            each.created_at,
            each.parent_window,
        )
        for each in result.windows
    ]
    names = ("window", "tags", "model", "tokens", "size", "own", "tier", "state", "created", "parent")
    return _page(_table(names, rows), len(rows), result.total)


@of.register
def _(result: m.SessionList) -> RenderableType:
    rows = [
        (
            each.session_id,
            each.title,
            each.state,
            each.model,
            each.token_count,
            each.cached_tokens,
            each.heads,
            each.last_active_at,
            ", ".join(each.windows),
        )
        for each in result.sessions
    ]
    names = ("session", "title", "state", "model", "tokens", "cached", "heads", "last active", "windows")
    return _page(_table(names, rows), len(rows), result.total)


@of.register
def _(result: m.Status) -> RenderableType:
    fields = _fields(result.model_dump(exclude={"blocks"}))
    if result.blocks is None:
        return fields
    rows = [(each.hash, each.tokens, size(each.size_bytes), each.storage_tier) for each in result.blocks]
    return Group(fields, _table(("block", "tokens", "size", "tier"), rows))


@of.register
def _(result: m.Health) -> RenderableType:
    table = _table(("component", "status", "message", "latency"), [])
    for each in result.components:
        latency = "-" if each.latency_ms is None else f"{each.latency_ms:.1f} ms"
        table.add_row(each.name, Text(each.status, _COLOURS[each.status]), _cell(each.message), latency)
    head = Text.assemble((result.status, _COLOURS[result.status]), f", {result.version}, up {result.uptime_seconds} s")
    return Group(head, table)


@of.register
def _(result: m.Metrics) -> RenderableType:
    if result.metrics is None:
        return Text(result.text or "")
    rows = [
        (each.name, " ".join(f"{name}={value}" for name, value in each.labels.items()), f"{each.value:g}", each.help)
        for each in result.metrics
    ]
    return _table(("metric", "labels", "value", "meaning"), rows)


def size(count: int | None) -> str | None:
    """Bytes in the largest binary unit that leaves at least one whole of it."""
    if count is None:
        return None
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def _fields(values: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _flat(values):
        in_bytes = name.endswith("bytes") and isinstance(value, int)
        table.add_row(name, _cell(size(value) if in_bytes else value))
    return table


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _page(table: Table, shown: int, total: int) -> RenderableType:
    return Group(table, Text(f"{shown} of {total}", "dim")) if shown < total or not total else table


def _cell(value: object) -> Text:
    """Text is what somebody wrote, never markup or a control sequence for the terminal."""
    if value is None or value in ("", [], {}):
        return Text("-")
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return Text("".join(character if character.isprintable() else " " for character in text))
