"""Print times of calls as a table, and compare them with a limit."""

import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def show_times(
    console: Console, title: str, times: Mapping[str, Sequence[float]], *, called: str = "call", digits: int = 1
) -> None:
    """Print the median, spread and maximum of each series.

    `times` holds the milliseconds of each call. `called` is the title of the first column.
    """
    table = Table(title=title, title_justify="left")
    table.add_column(called)
    for column in ("n", "median ms", "p25–p75", "p99", "max"):
        table.add_column(column, justify="right")
    for what, values in times.items():
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        low, high, p99 = (f"{cuts[at]:.{digits}f}" for at in (24, 74, 98))
        median, most = f"{statistics.median(values):.{digits}f}", f"{max(values):.{digits}f}"
        table.add_row(what, str(len(values)), median, f"{low}–{high}", p99, most)
    console.print(table)


def over(times: Mapping[str, Sequence[float]], limit_ms: float) -> list[str]:
    """Return a sentence for each series whose 99th percentile is above the limit."""
    p99 = {what: statistics.quantiles(values, n=100, method="inclusive")[98] for what, values in times.items()}
    return [f"{what}: p99 {value:.1f} ms > {limit_ms:g} ms" for what, value in p99.items() if value > limit_ms]
