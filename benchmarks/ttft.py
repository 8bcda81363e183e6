"""`python -m benchmarks.ttft`: compare the time to the first token cold, on a prefix-cache hit and thawed.

All ratios come from one run of one server on the small model. Each repetition has a prompt of its own. It measures a
cold request, prefix-cache hits, a freeze, a clone, and thaws with the chunks in CPU memory, in the same engine. Then
the engine is killed and started again for the thaws from disk, with the chunk files dropped from the page cache. First
the requests read from disk, and then, when memory has lost the chunks to other windows, the calls do. Each request is
followed by a prefix-cache hit on what it loaded and by plain O_DIRECT reads of the same files: the ceiling.
A sample counts only if vLLM's own counters confirm what was cached and what was restored.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.direct_reads import seconds_to_read
from benchmarks.timed_call import timed_call
from benchmarks.ttft_report import Repetition, Run, draw, print_run, write_json
from cwm_connector.protocol.calls import Args, CloneArgs, FreezeArgs, Op, ThawArgs
from tests.support.api import Measured
from tests.support.engine import ROOT, Engine, EngineOptions, kv_bytes_per_token, model_folder, quick_dtype
from tests.support.machine import describe
from tests.support.texts import prompt_of

FOLDER: Final = ROOT / "build" / "bench"
PROMPT_TOKENS: Final = 8000
AGAIN: Final = 3
"""How many prefix hits and thaws from CPU memory each prompt gets."""
WARM: Final = 99
"""The number of the repetition that does not count, because it pays for lazy initialisation."""
WARM_TOKENS: Final = 1000
WINDOWS_IN_MEMORY: Final = 2.6
"""The size of CWM's memory tier: more than a freeze needs to keep its window there, and less than three windows."""


class Bench:
    """The engine and the prompts of one run."""

    def __init__(self, console: Console, engine: Engine, repetitions: int, tokens: int) -> None:
        self._console = console
        self._engine = engine
        self._count = repetitions
        self._tokens = tokens
        self._files: dict[int, list[Path]] = {}
        """The chunk files of each window."""
        self._prompts: dict[int, list[int]] = {}
        self._block = 0
        self._window_bytes = 0

    async def run(self) -> Run:
        """Measure all repetitions and return their samples."""
        self._block = await self._engine.api.block_tokens()
        self._prompts[WARM] = await prompt_of(self._engine.api, WARM, WARM_TOKENS)
        for number in range(self._count):
            self._prompts[number] = await prompt_of(self._engine.api, number, self._tokens)
        await self._live(WARM, Repetition())
        repetitions = tuple(Repetition() for _ in range(self._count))
        for number, repetition in enumerate(repetitions):
            self._console.print(f"Repetition {number + 1} of {self._count}: cold, hits, freeze, clone, thaws.")
            await self._live(number, repetition)
        await self._restarted()
        for number, repetition in enumerate(repetitions):
            salt, _ = await self._thaw(number, f"disk-{number}", prewarm=False)
            repetition.thawed_disk_s = (await self._thawed(number, salt)).completion.ttft_s
            repetition.hit_after_disk_s = await self._hits(number, cache_salt=salt)
            repetition.direct_read_s = await asyncio.to_thread(seconds_to_read, self._files[number])
        self._drop_page_cache()
        for number, repetition in enumerate(repetitions):
            _, repetition.thaw_disk_ms = await self._thaw(number, f"warmed-{number}", prewarm=True, from_tier="disk")
        return Run(
            describe(), self._engine.options.dtype, self._tokens, self._full_blocks(0), self._window_bytes, repetitions
        )

    async def _live(self, number: int, into: Repetition) -> None:
        session = f"bench-{number}"
        cold = await self._ask(number, session_id=session)
        _expect(cold, "a cold request", cached=0, restored=0)
        into.cold_s = cold.completion.ttft_s
        into.prefix_hit_s = await self._hits(number, session_id=session)
        before = set(self._chunk_files())
        frozen, _ = await self._call(Op.FREEZE, FreezeArgs(session_id=session, window_name=_window(number)))
        into.capture_ms, into.freeze_ms = frozen["capture_ms"], frozen["duration_ms"]
        self._window_bytes = frozen["total_size_bytes"]
        self._files[number] = [path for path in self._chunk_files() if path not in before]
        clone = CloneArgs(source_window=_window(number), target_window=f"{_window(number)}-clone")
        _, into.clone_ms = await self._call(Op.CLONE, clone)
        for turn in range(AGAIN):
            salt, milliseconds = await self._thaw(number, f"thawed-{number}-{turn}", prewarm=True)
            into.thaw_cpu_ms.append(milliseconds)
            into.thawed_cpu_s.append((await self._thawed(number, salt)).completion.ttft_s)

    def _full_blocks(self, number: int) -> int:
        """Return the most tokens that a hit or a thaw can give. vLLM always computes at least one."""
        return (len(self._prompts[number]) - 1) // self._block * self._block

    async def _restarted(self) -> None:
        self._console.print("Killing vLLM with -9 and starting it again, for the thaws from disk.")
        await asyncio.to_thread(self._engine.restart)
        self._drop_page_cache()
        salt, _ = await self._thaw(WARM, "warm-again", prewarm=False)
        await self._thawed(WARM, salt)

    def _drop_page_cache(self) -> None:
        """Drop the chunk files from the page cache. Otherwise reads of new files would come from memory."""
        for path in self._chunk_files():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def _chunk_files(self) -> list[Path]:
        return sorted((self._engine.home / "chunks").glob("*.data"))

    async def _hits(self, number: int, **who: str) -> list[float]:
        """Return the seconds of some prefix-cache hits."""
        seconds = []
        for _ in range(AGAIN):
            hit = await self._ask(number, **who)
            _expect(hit, "a prefix-cache hit", cached=self._full_blocks(number), restored=0)
            seconds.append(hit.completion.ttft_s)
        return seconds

    async def _thaw(
        self, number: int, session_id: str, prewarm: bool, from_tier: str | None = None
    ) -> tuple[str, float]:
        """Thaw a window and return the salt and the milliseconds that the caller waited."""
        thaw = ThawArgs(window_name=_window(number), new_session_id=session_id, prewarm=prewarm)
        answer, milliseconds = await self._call(Op.THAW, thaw)
        if answer["partial"]:
            raise RuntimeError(f"the thaw of {_window(number)} is partial: {answer['warning']}")
        if from_tier is not None and set(answer["restored_by_tier"]) != {from_tier}:
            raise RuntimeError(f"{_window(number)} came from {answer['restored_by_tier']}, not from {from_tier} alone")
        return answer["cache_salt"], milliseconds

    async def _thawed(self, number: int, salt: str) -> Measured:
        thawed = await self._ask(number, cache_salt=salt)
        _expect(thawed, "a thawed request", cached=self._full_blocks(number), restored=self._full_blocks(number))
        return thawed

    async def _ask(self, number: int, **who: str) -> Measured:
        return await self._engine.api.measure(self._prompts[number], 1, **who)

    async def _call(self, op: Op, arguments: Args) -> tuple[dict[str, Any], float]:
        """Call an operation on the control socket, as the MCP server does. Return the answer and the milliseconds."""
        return await timed_call(self._engine.home, op, arguments)


def _window(number: int) -> str:
    return f"bench-{number}"


def _expect(heard: Measured, what: str, cached: int, restored: int) -> None:
    """Raise RuntimeError if the sample is not what it is counted as."""
    got = (heard.completion.cached_tokens, heard.restored)
    if got != (cached, restored):
        raise RuntimeError(f"{what} should have {cached} tokens cached and {restored} restored, but has {got}")


def main() -> int:
    """Run the benchmark, print its tables, and write the samples and the picture."""
    parser = argparse.ArgumentParser(description="Measure the time to the first token: cold, prefix-cache hit, thawed.")
    parser.add_argument("--repetitions", type=int, default=5, help="how many prompts, at least 3")
    parser.add_argument("--tokens", type=int, default=PROMPT_TOKENS, help="the length of every prompt")
    parser.add_argument("--dtype", default=quick_dtype(), choices=("bfloat16", "float32"), help="the model's numbers")
    options = parser.parse_args()
    if options.repetitions < WINDOWS_IN_MEMORY:
        parser.error("fewer than 3 windows all fit into memory, and none would be read from disk")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    if not (model_folder() / "config.json").exists():
        console.print(f"there is no model in {model_folder()}. Run `make model` first.")
        return 2
    console.print("Starting vLLM with CWM.")
    window_bytes = options.tokens * kv_bytes_per_token(model_folder(), options.dtype)
    memory_gb = WINDOWS_IN_MEMORY * window_bytes / (1 << 30)
    with Engine(EngineOptions(dtype=options.dtype, cpu_cache_gb=memory_gb)) as engine:
        run = asyncio.run(Bench(console, engine, options.repetitions, options.tokens).run())
    FOLDER.mkdir(parents=True, exist_ok=True)
    print_run(console, run)
    write_json(run, FOLDER / "ttft.json")
    draw(run, FOLDER / "ttft.png")
    console.print(f"The samples are in {FOLDER / 'ttft.json'}, the picture in {FOLDER / 'ttft.png'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
