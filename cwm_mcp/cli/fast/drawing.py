"""Draw tables and lines as Rich would, byte by byte, without importing it.

Rich draws what is not simple: a line that wraps, a letter that is wider than one cell, a terminal that is set by hand.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from cwm_mcp.cli.fast.parts import Fields, Line, Part, parts
from cwm_mcp.cli.table import FittingTable

PIPE_WIDTH: Final = 240
"""Columns of a table that is not printed to a terminal. A pipe has no width, and wrapped lines are hard to search."""
_WISHES: Final = ("FORCE_COLOR", "TTY_COMPATIBLE")
"""Environment variables that only Rich reads."""
_DUMB: Final = ("dumb", "unknown")
_WIDE: Final = "\u0300"
"""Letters before this one take one cell each."""
_BOLD, _FAINT = "1", "2"


def drawn(result: msgspec.Struct) -> str | None:
    """Return the result as text for stdout, or None where Rich has to draw it."""
    laid_out = parts(result)
    if laid_out is None:
        from cwm_mcp.cli.fast.answers import answer

        laid_out = answer(result)
    if laid_out is None or any(os.environ.get(name) for name in _WISHES):
        return None
    if not sys.stdout.isatty():
        return draw(laid_out, PIPE_WIDTH, styled=False)
    if os.environ.get("TERM", "").lower() in _DUMB:
        return None
    return draw(laid_out, _columns(), styled=True)


def _columns() -> int:
    """Return the width of the terminal: COLUMNS, or that of the first stream that has one."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit():
        return int(given)
    for stream in range(3):
        with suppress(OSError):
            return os.get_terminal_size(stream).columns or 80
    return 80


def draw(laid_out: Sequence[Part], width: int, styled: bool) -> str | None:
    """Return the parts as text, or None if one of them is not simple."""
    lines: list[str] = []
    for part in laid_out:
        drawn_part = _part(part, width, styled)
        if drawn_part is None:
            return None
        lines += drawn_part
    return "".join(f"{line}\n" for line in lines)


def _part(part: Part, width: int, styled: bool) -> list[str] | None:
    match part:
        case Line(text=text, faint=faint, title=title):
            simple = len(title) + len(text) <= width and _is_simple((text,))
            shown = _style(title, _BOLD if styled and title else "") + _style(text, _FAINT if styled and faint else "")
            return [shown] if simple else None
        case Fields(rows=rows):
            return _fields(rows, width, _BOLD if styled else "")
        case FittingTable():
            return _table(part, width, _BOLD if styled else "")


def _fields(rows: Sequence[tuple[str, str]], width: int, bold: str) -> list[str] | None:
    names = max((len(name) for name, _ in rows), default=0)
    values = max((len(value) for _, value in rows), default=0)
    if names + 2 + values > width or not all(_is_simple(row) for row in rows):
        return None
    gap = _style(" ", bold) + " "
    return [_style(name.ljust(names), bold) + gap + value.ljust(values) for name, value in rows]


def _table(table: FittingTable, width: int, bold: str) -> list[str] | None:
    layout = table.layout(width, len)
    if sum(cells + 2 for _, cells in layout) - 2 > width or not all(_is_simple(row) for row in table.rows):
        return None

    def line(row: Sequence[str], style: str) -> str:
        between = _style(" ", style) * 2
        cells = (_cell(row[at], cells, table.columns[at].numeric) for at, cells in layout)
        return between.join(_style(cell, style) for cell in cells)

    return [line([column.name for column in table.columns], bold), *(line(row, "") for row in table.rows)]


def _is_simple(texts: Sequence[str]) -> bool:
    return all(not text or max(text) < _WIDE for text in texts)


def _cell(text: str, width: int, right: bool) -> str:
    cut = text if len(text) <= width else f"{text[: width - 1]}…"
    return cut.rjust(width) if right else cut.ljust(width)


def _style(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code else text
