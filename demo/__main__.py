"""Run the demo. The exit status is 1 if a token differs from the uninterrupted run, or if nothing was restored.

With --keep the engine goes on running afterwards, to play with.
"""

import argparse
import asyncio
import sys

from rich.console import Console

from demo.chart import draw_png, draw_terminal
from demo.next_steps import print_kept, print_next
from demo.report import FOLDER, Report, print_table, verdict, write_json
from demo.story import run_story
from tests.support.engine import Engine, EngineOptions, model_folder


def main() -> int:
    """Run the story, show what it measured and what to type next, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo")
    parser.add_argument("--keep", action="store_true", help="leave vLLM running afterwards")
    keep: bool = parser.parse_args().keep
    # A file or a pipe has no width of its own. 110 columns hold the table.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    if not (model_folder() / "config.json").exists():
        console.print(f"there is no model in {model_folder()}. Run `make model` first.")
        return 2
    engine = Engine(EngineOptions())
    try:
        report = asyncio.run(run_story(console, engine))
    except BaseException:
        engine.close()
        raise
    if not keep:
        engine.close()
    status = _show(console, report)
    if keep:
        print_kept(console, engine)
    print_next(console)
    return status


def _show(console: Console, report: Report) -> int:
    """Print the table, the chart and the verdict, write the report, and return the exit status."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    print_table(console, report)
    draw_terminal(report)
    draw_png(report, FOLDER / "chart.png")
    write_json(report, FOLDER / "report.json")
    console.print(f"The chart is in {FOLDER / 'chart.png'}, the report in {FOLDER / 'report.json'}.")
    faults = verdict(report)
    for fault in faults:
        console.print(f"[bold red]✗[/] {fault}")
    if not faults:
        console.print("[bold green]✓[/] Every token equals the uninterrupted run's, and every full block was restored.")
    return 1 if faults else 0


sys.exit(main())
