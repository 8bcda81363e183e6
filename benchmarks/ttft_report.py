"""Compute, print and draw the TTFT benchmark's medians, spreads and ratios, and compare them with their targets."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table


@dataclass(slots=True)
class Repetition:
    """The samples of one prompt: seconds to the first token, and the milliseconds that a client waited for CWM."""

    cold_s: float = 0
    prefix_hit_s: list[float] = field(default_factory=list)
    thawed_cpu_s: list[float] = field(default_factory=list)
    thawed_disk_s: float = 0
    hit_after_disk_s: list[float] = field(default_factory=list)
    """Prefix-cache hits on the blocks that the load from disk has filled."""
    direct_read_s: float = 0
    """Plain O_DIRECT reads of the same chunk files."""
    capture_ms: float = 0
    freeze_ms: float = 0
    clone_ms: float = 0
    thaw_cpu_ms: list[float] = field(default_factory=list)
    thaw_disk_ms: float = 0


@dataclass(frozen=True, slots=True)
class Run:
    """All samples of one run, and the machine that it ran on."""

    machine: dict[str, Any]
    dtype: str
    prompt_tokens: int
    restored_tokens: int
    """How many tokens of each thawed prompt were restored, by vLLM's counters."""
    window_bytes: int
    repetitions: tuple[Repetition, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of some samples."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of the values."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def shown(self, unit: str) -> str:
        """Return the spread as text, with the unit behind the median."""
        digits = 3 if self.median < 1 else 2 if self.median < 100 else 0
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f}–{self.high:.{digits}f})"


@dataclass(frozen=True, slots=True)
class Target:
    """A claim about two CPU cores. On other machines the ratio is of interest, but nothing is claimed."""

    name: str
    spread: Spread
    limit: float
    at_least: bool
    unit: str

    @property
    def met(self) -> bool:
        """Return True if the median is on the right side of the limit."""
        return self.spread.median >= self.limit if self.at_least else self.spread.median <= self.limit

    def shown_limit(self) -> str:
        """Return the limit as text."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{self.unit}"


def spreads(run: Run) -> dict[str, tuple[Spread, str]]:
    """Return the spread of every series, with its unit."""
    each = run.repetitions
    return {
        "cold": (Spread.of([one.cold_s for one in each]), " s"),
        "prefix-cache hit": (Spread.of([value for one in each for value in one.prefix_hit_s]), " s"),
        "thawed, CPU tier": (Spread.of([value for one in each for value in one.thawed_cpu_s]), " s"),
        "thawed, disk": (Spread.of([one.thawed_disk_s for one in each]), " s"),
        "prefix-cache hit after it": (Spread.of([value for one in each for value in one.hit_after_disk_s]), " s"),
        "plain O_DIRECT reads of its files": (Spread.of([one.direct_read_s for one in each]), " s"),
        "capture, idle engine": (Spread.of([one.capture_ms for one in each]), " ms"),
        "freeze, durable": (Spread.of([one.freeze_ms for one in each]), " ms"),
        "clone": (Spread.of([one.clone_ms for one in each]), " ms"),
        "thaw call, CPU tier": (Spread.of([value for one in each for value in one.thaw_cpu_ms]), " ms"),
        "thaw call, disk": (Spread.of([one.thaw_disk_ms for one in each]), " ms"),
    }


def targets(run: Run) -> list[Target]:
    """Return the ratios and times that have a target.

    Ratios are taken within a repetition, so that other work on the machine affects both sides.
    """
    each = run.repetitions
    cold_thawed = [one.cold_s / statistics.median(one.thawed_cpu_s) for one in each]
    cold_disk = [one.cold_s / one.thawed_disk_s for one in each]
    thawed_hit = [statistics.median(one.thawed_cpu_s) / statistics.median(one.prefix_hit_s) for one in each]
    disk_direct = [(one.thawed_disk_s - statistics.median(one.hit_after_disk_s)) / one.direct_read_s for one in each]
    return [
        Target("cold / thawed, CPU tier", Spread.of(cold_thawed), 40, True, "x"),
        Target("cold / thawed, disk", Spread.of(cold_disk), 12, True, "x"),
        Target("thawed, CPU tier / prefix-cache hit", Spread.of(thawed_hit), 1.1, False, "x"),
        Target("(thawed, disk - prefix-cache hit) / O_DIRECT", Spread.of(disk_direct), 1.25, False, "x"),
        Target("capture, idle engine", Spread.of([one.capture_ms for one in each]), 250, False, " ms"),
        Target("clone", Spread.of([one.clone_ms for one in each]), 20, False, " ms"),
    ]


def print_run(console: Console, run: Run) -> None:
    """Print the machine, the samples and the comparison with the targets."""
    machine = run.machine
    console.print(
        f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, {machine['date']}, "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    )
    console.print(
        f"{run.prompt_tokens:,} prompt tokens, {run.dtype}, max_tokens=1. By vLLM's counters, each thaw restored "
        f"{run.restored_tokens:,} tokens ({run.window_bytes / 1e6:.0f} MB)."
    )
    measured = Table(
        "measured", "median (min–max)", "samples", title="Seconds to the first token, and CWM's operations"
    )
    for name, (spread, unit) in spreads(run).items():
        measured.add_row(name, spread.shown(unit), str(spread.samples))
    console.print(measured)
    held = Table(
        "ratio of this run", "median (min–max)", "target on two cores", "", title="Comparison with the targets"
    )
    for target in targets(run):
        verdict = "[green]met[/]" if target.met else "[bold red]missed[/]"
        held.add_row(target.name, target.spread.shown(target.unit), target.shown_limit(), verdict)
    console.print(held)


def write_json(run: Run, path: Path) -> None:
    """Write all samples, spreads and targets to `path`."""
    content = {
        "machine": run.machine,
        "dtype": run.dtype,
        "prompt_tokens": run.prompt_tokens,
        "restored_tokens": run.restored_tokens,
        "window_bytes": run.window_bytes,
        "measured": {
            name: {"median": s.median, "min": s.low, "max": s.high, "samples": s.samples, "unit": unit.strip()}
            for name, (s, unit) in spreads(run).items()
        },
        "targets": [
            {"name": t.name, "median": t.spread.median, "limit": t.limit, "at_least": t.at_least, "met": t.met}
            for t in targets(run)
        ],
        "repetitions": [{name: getattr(one, name) for name in Repetition.__slots__} for one in run.repetitions],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


_ROWS: Final = {
    "cold": "#c8553d",
    "thawed, disk": "#7f9cf5",
    "thawed, CPU tier": "#2b59c3",
    "prefix-cache hit": "#5b8e7d",
}


def draw(run: Run, path: Path) -> None:
    """Draw every sample as a dot on a logarithmic axis, and each median as a line."""
    each = run.repetitions
    samples = {
        "cold": [one.cold_s for one in each],
        "thawed, disk": [one.thawed_disk_s for one in each],
        "thawed, CPU tier": [value for one in each for value in one.thawed_cpu_s],
        "prefix-cache hit": [value for one in each for value in one.prefix_hit_s],
    }
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    for row, (name, color) in enumerate(_ROWS.items()):
        values, median = samples[name], statistics.median(samples[name])
        axes.scatter(values, [row] * len(values), s=42, color=color, alpha=0.45, linewidths=0)
        axes.plot([median, median], [row - 0.3, row + 0.3], color=color, linewidth=2.5)
        axes.annotate(f"{median:.2f} s", (median, row - 0.36), ha="center", va="bottom", fontsize=9, color="#222222")
    axes.set_xscale("log")
    axes.set_yticks(range(len(_ROWS)), _ROWS)
    axes.set_ylim(len(_ROWS) - 0.4, -0.85)
    axes.set_title(
        f"Seconds to the first token of {run.prompt_tokens:,} tokens (logarithmic; line: median)",
        loc="left",
        fontsize=11,
        color="#222222",
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=10)
    axes.grid(axis="x", which="both", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    machine = run.machine
    figure.supxlabel(
        f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}, SmolLM2-135M",
        fontsize=8,
        color="#666666",
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)
