"""`python -m benchmarks.load_policy`: thaw from a slowed disk with CWM_LOAD=always and with CWM_LOAD=auto.

The disk is slowed so that reading a window takes `SLOWDOWN` times as long as computing it. Each policy has a server of
its own, which is killed after the freezes, so that the chunks are on disk alone. The restarted server computes one
prompt before the first thaw, so it knows its own speed, and it has measured the disk by itself. Each thaw is compared
with a cold request of the same length right before it: what counts is the thaw and its request together. Fails if
`auto` is more than 5 % slower than cold, or `always` is not slower.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.timed_call import timed_call
from cwm_connector.protocol.calls import FreezeArgs, Op, ThawArgs
from cwm_connector.settings import LoadPolicy
from tests.support.engine import Engine, EngineOptions, model_folder
from tests.support.machine import describe
from tests.support.slow_disk import SlowDisk
from tests.support.texts import prompt_of

PROMPT_TOKENS: Final = 4000
SLOWDOWN: Final = 2.0
ALLOWED: Final = 1.05
COLD: Final = 1000
"""Added to a repetition's number for the prompt of its cold request."""


@dataclass
class Samples:
    """The seconds of one policy, by repetition."""

    cold_s: list[float] = field(default_factory=list)
    thawed_s: list[float] = field(default_factory=list)
    restored: list[int] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Return thaw and request over cold, each pair measured together."""
        return [thawed / cold for thawed, cold in zip(self.thawed_s, self.cold_s, strict=True)]

    @property
    def ratio(self) -> float:
        """Return the median of the ratios."""
        return statistics.median(self.ratios)


class Bench:
    """One server with one policy."""

    def __init__(self, engine: Engine, disk: SlowDisk, repetitions: int, tokens: int) -> None:
        self._engine = engine
        self._tokens = tokens
        self._disk = disk
        self._repetitions = repetitions

    async def run(self) -> Samples:
        """Freeze the windows, slow the disk, and measure."""
        windows, cold_s = range(self._repetitions), []
        await self._ask(2 * COLD)  # pays for lazy initialisation
        for number in windows:
            cold_s.append((await self._ask(number, session_id=f"s{number}"))[0])
            frozen, _ = await self._call(Op.FREEZE, FreezeArgs(session_id=f"s{number}", window_name=f"w{number}"))
        self._disk.slow_to(frozen["total_size_bytes"] / (SLOWDOWN * statistics.median(cold_s)))
        await asyncio.to_thread(self._engine.restart)
        await self._ask(2 * COLD)
        samples = Samples()
        for number in windows:
            samples.cold_s.append((await self._ask(number + COLD))[0])
            seconds, restored = await self._thawed(number)
            samples.thawed_s.append(seconds)
            samples.restored.append(restored)
        return samples

    async def _thawed(self, number: int) -> tuple[float, int]:
        """Return the seconds of a thaw and its request, and the tokens that were loaded."""
        answer, milliseconds = await self._call(Op.THAW, ThawArgs(window_name=f"w{number}"))
        seconds, restored = await self._ask(number, cache_salt=answer["cache_salt"])
        return milliseconds / 1000 + seconds, restored

    async def _ask(self, number: int, **who: str) -> tuple[float, int]:
        measured = await self._engine.api.measure(await prompt_of(self._engine.api, number, self._tokens), 1, **who)
        return measured.completion.ttft_s, measured.restored

    async def _call(self, op: Op, arguments: Any) -> tuple[dict[str, Any], float]:
        return await timed_call(self._engine.home, op, arguments)


def measure(policy: LoadPolicy, repetitions: int, tokens: int) -> Samples:
    """Return the samples of a server with this policy."""
    with tempfile.TemporaryDirectory(prefix="cwm-") as folder:
        home = Path(folder) / "home"
        disk = SlowDisk(Path(folder), home / "chunks")
        options = EngineOptions(
            home=home, cpu_cache_gb=2, settings={"CWM_LOAD": policy.value, "CWM_AUTO_THAW": "off", **disk.environment()}
        )
        with Engine(options) as engine:
            return asyncio.run(Bench(engine, disk, repetitions, tokens).run())


def show(console: Console, samples: dict[LoadPolicy, Samples], tokens: int) -> None:
    """Print the medians of both policies."""
    machine = describe()
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}"
    title = f"{tokens} tokens, reading takes {SLOWDOWN:g} × computing. {where}"
    table = Table(title=title, title_justify="left")
    for column in ("CWM_LOAD", "cold s", "thaw and request s", "ratio", "first ratio", "tokens loaded"):
        table.add_column(column)
    for policy, each in samples.items():
        cold, thawed = statistics.median(each.cold_s), statistics.median(each.thawed_s)
        loaded = f"{statistics.median(each.restored):.0f}"
        low, high = min(each.ratios), max(each.ratios)
        ratio, first = f"{each.ratio:.2f} ({low:.2f}–{high:.2f})", f"{each.ratios[0]:.2f}"
        table.add_row(policy, f"{cold:.2f}", f"{thawed:.2f}", ratio, first, loaded)
    console.print(table)


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description="Compare CWM_LOAD=always and auto on a slowed disk.")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=PROMPT_TOKENS, help="the length of every prompt")
    options = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    if not (model_folder() / "config.json").exists():
        console.print(f"there is no model in {model_folder()}. Run `make model` first.")
        return 2
    samples = {}
    for policy in LoadPolicy:
        console.print(f"Starting vLLM with CWM_LOAD={policy}.")
        samples[policy] = measure(policy, options.repetitions, options.tokens)
    show(console, samples, options.tokens)
    return 0 if samples[LoadPolicy.AUTO].ratio <= ALLOWED < samples[LoadPolicy.ALWAYS].ratio else 1


if __name__ == "__main__":
    sys.exit(main())
