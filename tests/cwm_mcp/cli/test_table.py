"""Tables take one line per row, however narrow the terminal is."""

import io

import pytest
from rich.console import Console

from cwm_mcp.cli.table import Column, FittingTable

COLUMNS = (
    Column("window"),
    Column("tokens", numeric=True, rank=1),
    Column("created", numeric=True, rank=2),
    Column("tags", shrinks=True, rank=3),
)


def drawn(width: int, *rows: tuple[str, ...]) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(FittingTable(COLUMNS, list(rows)))
    return [line.rstrip() for line in capture.get().splitlines()]


ROWS = [(f"experiment-{number}", "12345", "2026-01-02 00:00", "project-x, debug, session") for number in range(3)]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_row_takes_one_line_and_its_name_stays_whole(width: int) -> None:
    lines = drawn(width, *ROWS)
    assert len(lines) == 1 + len(ROWS)
    assert [line.split()[0] for line in lines[1:]] == [row[0] for row in ROWS]


def test_columns_are_cut_short_before_they_are_left_out() -> None:
    assert drawn(200, *ROWS)[1].endswith("project-x, debug, session")
    assert drawn(60, *ROWS)[1].endswith("…")
    assert drawn(40, *ROWS)[0].split() == ["window", "tokens", "created"]
    assert drawn(24, *ROWS)[0].split() == ["window", "tokens"]


def test_a_name_that_is_wider_than_the_terminal_is_cut() -> None:
    lines = drawn(30, ("n" * 128, "1", "-", "-"))
    assert len(lines) == 2 and lines[1].startswith("nnn") and "…" in lines[1]


def test_an_empty_table_is_its_head() -> None:
    assert drawn(80) == ["window  tokens  created  tags"]
