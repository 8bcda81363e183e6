"""A table that fits the terminal with one line per row. Where it is too wide, it leaves out columns."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from cwm_mcp.cli.units import in_words

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_GAP: Final = 2
"""Spaces between two columns."""
_LEAST: Final = 12
"""Cells that a column which may shrink keeps."""


class Column(msgspec.Struct, frozen=True):
    """A column of a table."""

    name: str
    numeric: bool = False
    """It is aligned to the right."""
    shrinks: bool = False
    """It may be cut short before any column is left out."""
    rank: int = 0
    """Columns are left out from the highest rank down. One of rank 0 stays."""


class FittingTable(msgspec.Struct, frozen=True):
    """Rows that never take more than a line. The first column is cut last, because it holds the name."""

    columns: Sequence[Column]
    rows: list[Sequence[str]] = msgspec.field(default_factory=list)

    def add(self, *values: object) -> None:
        """Add a row."""
        self.rows.append([in_words(value) for value in values])

    def layout(self, most: int, measure: Callable[[str], int]) -> list[tuple[int, int]]:
        """Return the numbers of the columns to show in `most` cells, and their widths."""
        widths = [self._natural(number, measure) for number in range(len(self.columns))]
        shown = self._fitting(widths, most)
        return list(zip(shown, self._shrunk(shown, widths, most), strict=True))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Yield Rich's own table with the columns that fit."""
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        layout = self.layout(options.max_width, cell_len)
        for number, width in layout:
            column = self.columns[number]
            table.add_column(
                column.name,
                justify="right" if column.numeric else "left",
                no_wrap=True,
                overflow="ellipsis",
                max_width=width,
            )
        for row in self.rows:
            table.add_row(*(Text(row[number]) for number, _ in layout))
        yield table

    def _natural(self, number: int, measure: Callable[[str], int]) -> int:
        return max(measure(self.columns[number].name), *(measure(row[number]) for row in self.rows), 0)

    def _fitting(self, widths: Sequence[int], most: int) -> list[int]:
        """Return the numbers of the columns to show."""
        shown = list(range(len(self.columns)))
        least = [
            min(width, _LEAST) if column.shrinks else width for column, width in zip(self.columns, widths, strict=True)
        ]
        while _total(least[number] for number in shown) > most:
            last = max(shown, key=lambda number: self.columns[number].rank)
            if self.columns[last].rank == 0:
                break
            shown.remove(last)
        return shown

    def _shrunk(self, shown: Sequence[int], widths: Sequence[int], most: int) -> list[int]:
        """Return the width of each shown column. Columns that may shrink give way first, then the first one."""
        chosen = [widths[number] for number in shown]
        over = _total(iter(chosen)) - most
        giving = [place for place, number in enumerate(shown) if self.columns[number].shrinks]
        while over > 0 and any(chosen[place] > _LEAST for place in giving):
            widest = max(giving, key=lambda place: chosen[place])
            chosen[widest] -= 1
            over -= 1
        if over > 0:
            chosen[0] = max(_LEAST, chosen[0] - over)
        return chosen


def _total(widths: Iterator[int]) -> int:
    each = list(widths)
    return sum(each) + _GAP * (len(each) - 1)
