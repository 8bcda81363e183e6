"""The steps that export and import share: a thread for blocking work, buffers, and checks of parts and paths."""

import asyncio
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from cwm_connector.control.async_helpers import finish_even_if_cancelled
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.operations.context import EngineContext
from cwm_connector.settings import Settings
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import ChunkHeader, check, read_header, sealed_bytes
from cwm_connector.tiers.timeout_threads import TimeoutThreads

T = TypeVar("T")

STEP_LIMIT_S: Final = 120.0
"""For one step with the file, a chunk or a sync. A mount that hangs must not hold `chunk_lock` for ever."""


class TransferThread:
    """The thread of one transfer. A step that has begun is waited for before a cancellation goes on."""

    def __init__(self, what: str, path: Path, code: Code) -> None:
        """Start the thread. `code` is the error of a file that does not answer."""
        self._threads = TimeoutThreads(f"cwm-{what}", 1, STEP_LIMIT_S)
        self._path = path
        self._code = code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.close()  # at once: no step is running, except one that was given up

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function` on the thread and return its result.

        Raises: what `function` raises, or `Code.WRITE_FAILED`/`Code.READ_FAILED` if it takes longer than
        `STEP_LIMIT_S`.
        """
        return await self.through(self._threads.submit(lambda: function(*arguments), self._no_answer))

    async def through(self, step: "Future[T]") -> T:
        """Wait for a step and return its result."""
        waiting = asyncio.wrap_future(step)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await _over(waiting)
            raise

    async def through_all(self, steps: Sequence["Future[None]"]) -> None:
        """Wait for all steps. Raises: what the first failing step raised, once all are over."""
        waiting = [asyncio.wrap_future(step) for step in steps]
        try:
            for each in waiting:
                await asyncio.shield(each)
        finally:
            for each in waiting:
                await _over(each)

    async def clean_up(self, function: Callable[[], object]) -> None:
        """Run `function` even if the caller is cancelled. A CWMError is dropped: what it would have removed stays."""
        with suppress(CWMError):
            await finish_even_if_cancelled(self.run(function))

    def _no_answer(self, _: bool) -> CWMError:
        return CWMError(self._code, f"{self._path} does not answer; check the disk that it is on, then try again")


async def _over(waiting: "asyncio.Future[Any]") -> None:
    """Wait until a step is over, whatever its outcome. Until then it may use a buffer or a file."""
    with suppress(Exception):
        await finish_even_if_cancelled(waiting)


def new_buffer(size: int) -> memoryview:
    """Return zeroed memory in whole pages, as direct I/O needs it.

    Use each buffer once. A step that was given up may still write into it, and keeps it until it ends.
    """
    return memoryview(mmap.mmap(-1, size))


def check_part(
    engine: EngineContext, sealed: memoryview, part: ChunkId, chunk: ChunkSpec, payload_bytes: int | None = None
) -> bytes:
    """Check a part and return the layout that it gives. Only the workers can judge the layout.

    `payload_bytes`: of its pages, if they are not divided over ranks as this engine's.
    Raises: `Code.CORRUPT` unless it is exactly this rank's part of this chunk, as this engine would have sealed it.
    """
    found = read_header(sealed)
    expected = ChunkHeader(
        key=part.key,
        kv_rank=part.kv_rank,
        tokens=chunk.blocks * engine.geometry.block_tokens,
        blocks=chunk.page_count,
        payload_bytes=engine.payload_bytes(chunk) if payload_bytes is None else payload_bytes,
        layout=found.layout,
    )
    check(sealed, expected)
    return found.layout


def part_bytes(engine: EngineContext, chunk: ChunkSpec) -> int:
    """Return the length of a sealed part, one rank's share of a chunk."""
    return sealed_bytes(engine.payload_bytes(chunk))


def require_outside_store(settings: Settings, path: Path) -> None:
    """Check that a path lies outside the engine's folders. Blocks on the disk. Raises: `Code.ARGUMENT`."""
    real = Path(os.path.realpath(path))
    for folder in (settings.home, settings.chunks_path):
        if real.is_relative_to(os.path.realpath(folder)):
            raise CWMError(Code.ARGUMENT, f"{path} lies in the engine's own folder {folder}; choose another folder")
