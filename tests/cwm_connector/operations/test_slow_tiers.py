"""A disk that does not answer, beside work that needs nothing from it."""

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.units import GIB
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import CHUNK_BYTES, forget_memory, frozen, text


class HungDisk:
    """Answers no read until `answer`. `asked` is set by the first one."""

    def __init__(self, engine: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = threading.Event()
        self._read = engine.disk.read
        self._waiting: list[tuple[Any, Any, Future[None]]] = []
        monkeypatch.setattr(engine.disk, "read", self.read)

    def read(self, chunk: Any, into: Any) -> "Future[None]":
        answer: Future[None] = Future()
        self._waiting.append((chunk, into, answer))
        self.asked.set()
        return answer

    def answer(self, monkeypatch: pytest.MonkeyPatch, engine: Miniature) -> None:
        monkeypatch.setattr(engine.disk, "read", self._read)
        for chunk, into, answer in self._waiting:
            self._read(chunk, into).result(10)
            answer.set_result(None)


async def with_a_hung_thaw_and_load(
    home: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> tuple[Miniature, HungDisk, "asyncio.Future[Any]"]:
    """Return an engine with window `memory` in memory, while a thaw of `disk` waits for the disk."""
    engine = await Miniature.started(home, **more)
    await frozen(engine, "disk", text(1))
    forget_memory(engine)
    await frozen(engine, "memory", text(2))
    disk = HungDisk(engine, monkeypatch)
    thawing = asyncio.ensure_future(engine.call(Op.THAW, window_name="disk", new_session_id="slow"))
    assert await asyncio.to_thread(disk.asked.wait, 20)
    return engine, disk, thawing


async def test_windows_in_memory_are_thawed_and_loaded_while_the_disk_answers_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, disk, thawing = await with_a_hung_thaw_and_load(tmp_path, monkeypatch)
    async with asyncio.timeout(30):
        for number in range(3):
            thawed = await engine.call(Op.THAW, window_name="memory", new_session_id=f"r{number}")
            assert not thawed["partial"]
            assert await engine.resume(text(2), session_id=f"r{number}") == len(text(2))
        await frozen(engine, "new", text(3))
    assert not thawing.done()
    disk.answer(monkeypatch, engine)
    assert not (await thawing)["partial"]
    assert await engine.resume(text(1), session_id="slow") == len(text(1))
    engine.close()


async def test_a_load_waits_for_memory_that_another_transfer_holds(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, cpu_cache_gb=3 * CHUNK_BYTES / GIB)
    await frozen(engine, "w", text(1))
    await engine.call(Op.THAW, window_name="w", new_session_id="r", prewarm=False)
    forget_memory(engine)
    whole = engine.cpu.reserve(3 * CHUNK_BYTES)
    timer = threading.Timer(0.5, engine.cpu.release, [whole])
    timer.start()
    assert await engine.resume(text(1), session_id="r") == len(text(1))
    timer.join()
    engine.close()


async def test_a_load_from_memory_never_turns_to_a_disk_because_others_took_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await Miniature.started(tmp_path, cpu_cache_gb=5 * CHUNK_BYTES / GIB)
    await frozen(engine, "w", text(1))
    await engine.call(Op.THAW, window_name="w", new_session_id="r")
    load, refused = engine.worker._loader.load, []

    def load_later(*arguments: Any) -> None:
        """Load when others have tried to get all of the memory."""
        try:
            engine.cpu.release(engine.cpu.reserve(5 * CHUNK_BYTES))
        except Exception as problem:
            refused.append(problem)
        load(*arguments)

    reads: list[Any] = []
    monkeypatch.setattr(engine.worker._loader, "load", load_later)
    monkeypatch.setattr(engine.disk, "read", lambda *arguments: reads.append(arguments))
    assert await engine.resume(text(1), session_id="r") == len(text(1))
    assert refused and not reads
    engine.close()
