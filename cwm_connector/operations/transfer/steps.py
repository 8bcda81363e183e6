"""What export and import have in common: a thread for whatever blocks, buffers, and what fits this engine."""

import asyncio
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.async_helpers import finish_even_if_cancelled
from cwm_connector.operations.context import EngineContext
from cwm_connector.settings import Settings
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import ChunkHeader, check, read_header, sealed_bytes
from cwm_connector.tiers.timeout_threads import TimeoutThreads

T = TypeVar("T")

STEP_LIMIT_S: Final = 120.0
"""For one step with the file, a chunk or a sync: a mount that hangs must not hold the turn for ever."""


class TransferThread:
    """One thread of one transfer's own. What began is waited for, whole, before a cancellation goes on."""

    def __init__(self, what: str, path: Path, code: Code) -> None:
        """`code`: of a file that does not answer."""
        self._threads = TimeoutThreads(f"cwm-{what}", 1, STEP_LIMIT_S)
        self._path = path
        self._code = code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.close()  # at once: no step is under way, but for one that was given up

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Raises: what `function` raises; CWM-4001/4002 if it takes longer than `STEP_LIMIT_S`."""
        return await self.through(self._threads.submit(lambda: function(*arguments), self._silent))

    async def through(self, step: "Future[T]") -> T:
        """The step's result."""
        waiting = asyncio.wrap_future(step)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await _over(waiting)
            raise

    async def through_all(self, steps: Sequence["Future[None]"]) -> None:
        """Raises what the first of them raises that fails, once all are over."""
        waiting = [asyncio.wrap_future(step) for step in steps]
        try:
            for each in waiting:
                await asyncio.shield(each)
        finally:
            for each in waiting:
                await _over(each)

    async def clean_up(self, function: Callable[[], object]) -> None:
        """Runs it whatever happens. Where the file does not answer, what it would have removed stays."""
        with suppress(CWMError):
            await finish_even_if_cancelled(self.run(function))

    def _silent(self, _: bool) -> CWMError:
        return CWMError(self._code, f"{self._path} does not answer; check the disk that it is on, then try again")


async def _over(waiting: "asyncio.Future[Any]") -> None:
    """Returns when it is, well or not: until then it may use a buffer or a file."""
    with suppress(Exception):
        await finish_even_if_cancelled(waiting)


def new_buffer(size: int) -> memoryview:
    """Zeros in whole pages, as direct I/O wants them. A buffer is not used twice: a transfer that was given up may
    still write into it, and holds it as long as that lasts."""
    return memoryview(mmap.mmap(-1, size))


def check_part(engine: EngineContext, sealed: memoryview, part: ChunkId, blocks: int) -> bytes:
    """The layout that the part says it has, which only the workers know better.

    Raises: CWM-4004 for what is not exactly this rank's part of this chunk, as this engine would have sealed it.
    """
    found = read_header(sealed)
    expected = ChunkHeader(
        key=part.key,
        kv_rank=part.kv_rank,
        tokens=blocks * engine.geometry.block_tokens,
        blocks=blocks,
        payload_bytes=blocks * engine.block_bytes,
        layout=found.layout,
    )
    check(sealed, expected)
    return found.layout


def part_bytes(engine: EngineContext, blocks: int) -> int:
    """A sealed part's length: one rank's share of a chunk of so many blocks."""
    return sealed_bytes(blocks * engine.block_bytes)


def require_outside_store(settings: Settings, path: Path) -> None:
    """Blocks. Raises: CWM-1003 for a file among the engine's own."""
    real = Path(os.path.realpath(path))
    for folder in (settings.home, settings.chunks_path):
        if real.is_relative_to(os.path.realpath(folder)):
            raise CWMError(Code.ARGUMENT, f"{path} lies in the engine's own folder {folder}; choose another one")
