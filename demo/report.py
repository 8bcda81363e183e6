"""Check the outcome of the story, and print and write it.

Every figure comes from vLLM, from a clock or from the window.
"""

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
    """One way to the next answer. `reference` is the uninterrupted engine's turn, None if there is none."""

    name: str
    turn: Turn
    reference: Turn | None

    @property
    def ttft_s(self) -> float:
        """Return the seconds to the first token."""
        return self.turn.heard.completion.ttft_s

    @property
    def computed_tokens(self) -> int:
        """Return how many tokens of the prompt were computed."""
        done = self.turn.heard.completion
        return done.prompt_tokens - done.cached_tokens

    @property
    def same_tokens(self) -> bool | None:
        """Return whether the answer equals the reference's, token by token, or None without a reference."""
        if self.reference is None:
            return None
        return self.turn.heard.completion.token_ids == self.reference.heard.completion.token_ids


@dataclass(frozen=True, slots=True)
class Branch:
    """A clone's next turn, and the same turn in the uninterrupted engine."""

    window: str
    turn: Turn
    reference: Turn
    clone_bytes: int
    """The bytes that the clone stored, by window_clone's answer."""

    def way(self) -> Way:
        """Return the branch as one of the ways."""
        return Way(f"branch {self.window}", self.turn, self.reference)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the story measured."""

    machine: dict[str, Any]
    block_tokens: int
    stem_tokens: int
    """Tokens of the conversation when it was frozen."""
    seconds: float
    """The time of the whole story, with all starts of vLLM."""
    turns: list[Turn]
    frozen: dict[str, Any]
    """The answer of window_freeze."""
    thaw: dict[str, Any]
    """The answer of the first window_thaw after the restart."""
    cold: Way
    prefix_hit: Way
    thawed: Way
    branches: list[Branch]
    back: Way
    went_on: Way
    """After another kill -9, with no call."""

    def ways(self) -> Iterator[Way]:
        """Yield all ways, in the order of the table."""
        yield from (self.cold, self.prefix_hit, self.thawed)
        yield from (branch.way() for branch in self.branches)
        yield self.back
        yield self.went_on


def verdict(report: Report) -> list[str]:
    """Return what went wrong, one sentence each. The list is empty if everything is right."""
    faults = []
    whole = report.frozen["token_count"] // report.block_tokens * report.block_tokens
    for way in report.ways():
        if way.reference is None:
            continue
        restored, kept = way.turn.heard.restored, way.reference.heard.local_hits
        if kept != whole:
            faults.append(f"{way.name}: the uninterrupted run found {kept} tokens cached, not the session's {whole}")
        if restored == 0:
            faults.append(f"{way.name}: nothing was restored, by vLLM's counters")
        elif restored < whole:
            faults.append(f"{way.name}: {restored} tokens were restored, but the session's full blocks hold {whole}")
        if not way.same_tokens:
            faults.append(f"{way.name}: the answer differs from the uninterrupted run's")
    return faults


def print_table(console: Console, report: Report) -> None:
    """Print one row for each way, and below the table what the freeze and the clones stored."""
    prompt = report.thawed.turn.heard.completion.prompt_tokens
    table = Table(title=f"The next turn after {report.stem_tokens:,} tokens ({prompt:,} tokens with its question)")
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
        f"The freeze stored {report.frozen['total_size_bytes']:,} bytes, durable after "
        f"{report.frozen['duration_ms']:.0f} ms. {len(report.branches)} clones stored {clones} bytes more. "
        f"The demo took {report.seconds:.0f} s."
    )


def write_json(report: Report, path: Path) -> None:
    """Write everything that the story measured to `path`."""
    faults = verdict(report)
    content = {
        "machine": report.machine,
        "seconds": round(report.seconds, 1),
        "stem_tokens": report.stem_tokens,
        "block_tokens": report.block_tokens,
        "frozen": report.frozen,
        "clone_bytes": sum(branch.clone_bytes for branch in report.branches),
        # A request with the salt may load the window. It stays in this process.
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
