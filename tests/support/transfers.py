"""Exports and imports between miniature engines, for the tests of both."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.transfer import archive_files
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature, chunk_files
from tests.support.stores import (
    frozen,
    text,
)

TEXT = [*text(1), *range(7, 12)]
"""Three whole chunks, and a rest that no block holds."""
RESTORABLE = 96


async def filled(home: Path) -> None:
    """A store with window `w`, and no engine over it."""
    one = await Miniature.started(home)
    await frozen(one, "w", TEXT)
    one.close()


async def names(engine: Miniature) -> list[str]:
    return sorted(window["name"] for window in (await engine.call(Op.LIST))["windows"])


async def refused(engine: Miniature, code: Code, path: Path, **args: Any) -> CWMError:
    """An import that ends with this code and leaves nothing behind."""
    before, files = await names(engine), chunk_files(engine.settings.home)
    with pytest.raises(CWMError) as problem:
        await engine.call(Op.IMPORT, path=str(path), **args)
    assert problem.value.code is code, problem.value
    assert await names(engine) == before and chunk_files(engine.settings.home) == files
    assert not engine.engine.chunk_lock.locked()
    return problem.value


def content_of(file: Path) -> bytes:
    return file.read_bytes()


def put(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def partial_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(archive_files.PARTIAL)]


async def _die_in(op: Op, home: Path, path: Path, when: str) -> None:
    """An engine that is killed once so many chunks are done, or right after the commit."""
    engine = await Miniature.started(home)

    def progress(done: int, *_: object) -> None:
        if when == str(done):
            os.kill(os.getpid(), signal.SIGKILL)

    async def run(work: Callable[[Any], Any]) -> Any:
        result = await catalog_run(work)
        if when == "committed" and "commit_window" in work.__code__.co_names:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    catalog_run = engine.catalog.run
    engine.catalog.run = run  # type: ignore[method-assign]
    await engine.call(op, progress, path=str(path), **({"window_name": "w"} if op is Op.EXPORT else {}))


def die_in(op: Op, home: Path, path: Path, when: str) -> None:
    asyncio.run(_die_in(op, home, path, when))


def killed(op: Op, home: Path, path: Path, when: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=die_in, args=(op, home, path, when))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
