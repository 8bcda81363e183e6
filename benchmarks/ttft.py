"""`python -m benchmarks.ttft`: compare the time to the first token cold, on a prefix-cache hit and thawed.

All ratios come from one run of one server on the small model. Each repetition has a prompt of its own. It measures a
cold request, prefix-cache hits, a freeze, a clone, and thaws with the chunks in CPU memory, in the same engine. Then
the engine is killed and started again for the thaws from disk, with the chunk files dropped from the page cache. A
sample counts only if vLLM's own counters confirm what was cached and what was restored.
"""

import argparse
import asyncio
import os
import sys
from typing import Any, Final

from rich.console import Console

from benchmarks.timed_call import timed_call
from benchmarks.ttft_report import Repetition, Run, draw, print_run, write_json
from cwm_connector.protocol.calls import Args, CloneArgs, FreezeArgs, Op, ThawArgs
from tests.support.api import Measured
from tests.support.engine import ROOT, Engine, EngineOptions, model_folder
from tests.support.machine import describe
from tests.support.texts import prompt_of

FOLDER: Final = ROOT / "build" / "bench"
PROMPT_TOKENS: Final = 6000
AGAIN: Final = 3
"""How many prefix hits and thaws from CPU memory each prompt gets."""
WARM: Final = 99
"""The number of the repetition that does not count, because it pays for lazy initialisation."""


class Bench:
    """The engine and the prompts of one run."""

    def __init__(self, console: Console, engine: Engine, repetitions: int) -> None:
        self._console = console
        self._engine = engine
        self._count = repetitions
        self._prompts: dict[int, list[int]] = {}
        self._full_blocks = 0
        self._window_bytes = 0

    async def run(self) -> Run:
        """Measure all repetitions and return their samples."""
        # vLLM always computes at least one token, so a hit or a thaw can give no more than this.
        block = await self._engine.api.block_tokens()
        self._full_blocks = (PROMPT_TOKENS - 1) // block * block
        for number in (WARM, *range(self._count)):
            self._prompts[number] = await prompt_of(self._engine.api, number, PROMPT_TOKENS)
        await self._live(WARM, Repetition())
        repetitions = tuple(Repetition() for _ in range(self._count))
        for number, repetition in enumerate(repetitions):
            self._console.print(f"Repetition {number + 1} of {self._count}: cold, hits, freeze, clone, thaws.")
            await self._live(number, repetition)
        await self._restarted("the thaws read from disk during the load")
        for number, repetition in enumerate(repetitions):
            salt, _ = await self._thaw(number, f"disk-{number}", prewarm=False)
            repetition.thawed_disk_s = (await self._thawed(number, salt)).completion.ttft_s
        await self._restarted("the thaws read from disk before the request")
        for number, repetition in enumerate(repetitions):
            _, repetition.thaw_disk_ms = await self._thaw(number, f"warmed-{number}", prewarm=True)
        return Run(describe(), PROMPT_TOKENS, self._full_blocks, self._window_bytes, repetitions)

    async def _live(self, number: int, into: Repetition) -> None:
        session = f"bench-{number}"
        cold = await self._ask(number, session_id=session)
        _expect(cold, "a cold request", cached=0, restored=0)
        into.cold_s = cold.completion.ttft_s
        for _ in range(AGAIN):
            hit = await self._ask(number, session_id=session)
            _expect(hit, "a prefix-cache hit", cached=self._full_blocks, restored=0)
            into.prefix_hit_s.append(hit.completion.ttft_s)
        frozen, _ = await self._call(Op.FREEZE, FreezeArgs(session_id=session, window_name=_window(number)))
        into.capture_ms, into.freeze_ms = frozen["capture_ms"], frozen["duration_ms"]
        self._window_bytes = frozen["total_size_bytes"]
        clone = CloneArgs(source_window=_window(number), target_window=f"{_window(number)}-clone")
        _, into.clone_ms = await self._call(Op.CLONE, clone)
        for turn in range(AGAIN):
            salt, milliseconds = await self._thaw(number, f"thawed-{number}-{turn}", prewarm=True)
            into.thaw_cpu_ms.append(milliseconds)
            into.thawed_cpu_s.append((await self._thawed(number, salt)).completion.ttft_s)

    async def _restarted(self, why: str) -> None:
        self._console.print(f"Killing vLLM with -9 and starting it again: {why}.")
        await asyncio.to_thread(self._engine.restart)
        self._drop_page_cache()
        salt, _ = await self._thaw(WARM, "warm-again", prewarm=False)
        await self._thawed(WARM, salt)

    def _drop_page_cache(self) -> None:
        """Drop the chunk files from the page cache. Otherwise reads of new files would come from memory."""
        for path in (self._engine.home / "chunks").rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)

    async def _thaw(self, number: int, session_id: str, prewarm: bool) -> tuple[str, float]:
        """Thaw a window and return the salt and the milliseconds that the caller waited."""
        thaw = ThawArgs(window_name=_window(number), new_session_id=session_id, prewarm=prewarm)
        answer, milliseconds = await self._call(Op.THAW, thaw)
        if answer["partial"]:
            raise RuntimeError(f"the thaw of {_window(number)} is partial: {answer['warning']}")
        return answer["cache_salt"], milliseconds

    async def _thawed(self, number: int, salt: str) -> Measured:
        thawed = await self._ask(number, cache_salt=salt)
        _expect(thawed, "a thawed request", cached=self._full_blocks, restored=self._full_blocks)
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
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    if not (model_folder() / "config.json").exists():
        console.print(f"there is no model in {model_folder()}. Run `make model` first.")
        return 2
    console.print("Starting vLLM with CWM.")
    with Engine(EngineOptions(dtype="bfloat16", cpu_cache_gb=2)) as engine:
        run = asyncio.run(Bench(console, engine, repetitions).run())
    FOLDER.mkdir(parents=True, exist_ok=True)
    print_run(console, run)
    write_json(run, FOLDER / "ttft.json")
    draw(run, FOLDER / "ttft.png")
    console.print(f"The samples are in {FOLDER / 'ttft.json'}, the picture in {FOLDER / 'ttft.png'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
