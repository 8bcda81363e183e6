"""What the story amounts to: the judgement, the table, the JSON. Every figure is vLLM's, a clock's or the window's."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from demo.conversation import Turn
from tests.support.engine import ROOT

FOLDER: Final = ROOT / "build" / "demo"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the next answer. `reference` is the uninterrupted engine's, None where it is not to be compared."""

    name: str
    turn: Turn
    reference: Turn | None

    @property
    def ttft_s(self) -> float:
        return self.turn.heard.completion.ttft_s

    @property
    def computed_tokens(self) -> int:
        done = self.turn.heard.completion
        return done.prompt_tokens - done.cached_tokens

    @property
    def same_tokens(self) -> bool | None:
        if self.reference is None:
            return None
        return self.turn.heard.completion.token_ids == self.reference.heard.completion.token_ids


@dataclass(frozen=True, slots=True)
class Branch:
    """A clone's next turn, and the same turn asked of the uninterrupted engine."""

    window: str
    turn: Turn
    reference: Turn
    clone_bytes: int
    """What the clone stored, as window_clone says."""

    def way(self) -> Way:
        return Way(f"branch {self.window}", self.turn, self.reference)


@dataclass(frozen=True, slots=True)
class Report:
    machine: dict[str, Any]
    block_tokens: int
    stem_tokens: int
    """Tokens of the conversation when it was frozen."""
    seconds: float
    """The whole story, both starts of vLLM included."""
    turns: list[Turn]
    frozen: dict[str, Any]
    """What window_freeze answered."""
    thaw: dict[str, Any]
    """What the first window_thaw after the restart answered."""
    cold: Way
    prefix_hit: Way
    thawed: Way
    branches: list[Branch]
    back: Way

    def ways(self) -> Iterator[Way]:
        yield from (self.cold, self.prefix_hit, self.thawed)
        yield from (branch.way() for branch in self.branches)
        yield self.back


def verdict(report: Report) -> list[str]:
    """What went wrong, in sentences; empty where all held."""
    faults = []
    whole = report.frozen["token_count"] // report.block_tokens * report.block_tokens
    for way in report.ways():
        if way.reference is None:
            continue
        restored, kept = way.turn.heard.restored, way.reference.heard.local_hits
        if kept != whole:
            faults.append(f"{way.name}: its reference found {kept} tokens cached, not the session's {whole}")
        if restored == 0:
            faults.append(f"{way.name}: vLLM's counters say that nothing was restored")
        elif restored < whole:
            faults.append(f"{way.name}: {restored} tokens restored, but the session's full blocks hold {whole}")
        if not way.same_tokens:
            faults.append(f"{way.name}: its tokens differ from the uninterrupted run's")
    return faults


def print_table(console: Console, report: Report) -> None:
    prompt = report.thawed.turn.heard.completion.prompt_tokens
    table = Table(title=f"The next turn of a conversation of {report.stem_tokens:,} tokens ({prompt:,} with it)")
    table.add_column("way", no_wrap=True)
    for title in ("first token", "cold is", "restored", "cached", "computed", "read", "same tokens"):
        table.add_column(title, justify="right")
    for way in report.ways():
        restored = way.turn.heard.restored
        table.add_row(
            way.name,
            f"{way.ttft_s:.2f} s",
            f"{report.cold.ttft_s / way.ttft_s:.1f}x",
            f"{restored:,}",
            f"{way.turn.heard.local_hits:,}",
            f"{way.computed_tokens:,}",
            f"{report.frozen['total_size_bytes'] / 1e6:.0f} MB" if restored else "–",
            {None: "–", True: "yes", False: "[bold red]NO"}[way.same_tokens],
        )
    console.print(table)
    clones = sum(branch.clone_bytes for branch in report.branches)
    console.print(
        f"Frozen: {report.frozen['total_size_bytes']:,} bytes, durable after "
        f"{report.frozen['duration_ms']:.0f} ms. {len(report.branches)} clones stored {clones} bytes more. "
        f"In all {report.seconds:.0f} s."
    )


def write_json(report: Report, path: Path) -> None:
    faults = verdict(report)
    content = {
        "machine": report.machine,
        "seconds": round(report.seconds, 1),
        "stem_tokens": report.stem_tokens,
        "block_tokens": report.block_tokens,
        "frozen": report.frozen,
        "clone_bytes": sum(branch.clone_bytes for branch in report.branches),
        # The salt opens the window: it stays in the process that asked for it.
        "thaw": {name: value for name, value in report.thaw.items() if name != "cache_salt"},
        "ways": [_as_json(way) for way in report.ways()],
        "turns": [{"question": turn.question, "answer": turn.answer} for turn in report.turns],
        "faults": faults,
        "passed": not faults,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _as_json(way: Way) -> dict[str, Any]:
    counted = asdict(way.turn.heard)
    completion = counted.pop("completion")
    return {
        "way": way.name,
        "question": way.turn.question,
        "answer": way.turn.answer,
        "ttft_s": round(way.ttft_s, 4),
        "prompt_tokens": completion["prompt_tokens"],
        "restored_tokens": counted["restored"],
        "locally_cached_tokens": counted["local_hits"],
        "computed_tokens": way.computed_tokens,
        "token_ids": list(completion["token_ids"]),
        "same_tokens": way.same_tokens,
    }
