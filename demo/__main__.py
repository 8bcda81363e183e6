"""Exit status 1 if a token differs from the uninterrupted run, or if nothing was restored."""

import asyncio
import sys

from rich.console import Console

from demo.chart import draw_png, draw_terminal
from demo.report import FOLDER, print_table, verdict, write_json
from demo.story import tell
from tests.support.engine import model_folder


def main() -> int:
    # Into a file or a pipe: wide enough for the table.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    if not (model_folder() / "config.json").exists():
        console.print(f"the model is missing in {model_folder()}: run `make model`")
        return 2
    report = asyncio.run(tell(console))
    FOLDER.mkdir(parents=True, exist_ok=True)
    print_table(console, report)
    draw_terminal(report)
    draw_png(report, FOLDER / "chart.png")
    write_json(report, FOLDER / "report.json")
    console.print(f"chart: {FOLDER / 'chart.png'}   report: {FOLDER / 'report.json'}")
    faults = verdict(report)
    for fault in faults:
        console.print(f"[bold red]✗[/] {fault}")
    if not faults:
        console.print("[bold green]✓[/] every token equals the uninterrupted run's, and the context was restored")
    return 1 if faults else 0


sys.exit(main())
