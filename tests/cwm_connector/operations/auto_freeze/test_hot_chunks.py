"""An auto-freeze beside a working set in CPU memory: the one becomes durable, the other stays where it is."""

from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.units import GIB
from cwm_connector.protocol.calls import Op
from tests.cwm_connector.operations.auto_freeze.test_freezer import silent, windows
from tests.support.miniature import Miniature
from tests.support.stores import CHUNK_BYTES, forget_memory, frozen, text

TIER_CHUNKS = 40
LARGE = text(99, chunks=3 * TIER_CHUNKS)


def counted(read: Any, into: list[Any]) -> Any:
    def counting(*args: Any) -> Any:
        into.append(args)
        return read(*args)

    return counting


async def thawed(engine: Miniature, windows: int) -> list[bool]:
    """Thaw and load each window of three chunks. Return which of them came whole."""
    whole = []
    for number in range(windows):
        await engine.call(Op.THAW, window_name=f"w{number}", new_session_id=f"r{number}")
        whole.append(await engine.resume(text(number), session_id=f"r{number}") == len(text(number)))
    return whole


async def with_working_set(home: Path, windows: int) -> Miniature:
    """Return an engine whose memory holds windows that were just loaded."""
    cpu_cache_gb = TIER_CHUNKS * CHUNK_BYTES / GIB
    engine = await Miniature.started(home, auto_freeze_enabled=True, cpu_cache_gb=cpu_cache_gb, pool_blocks=400)
    for number in range(windows):
        await frozen(engine, f"w{number}", text(number))
    forget_memory(engine)
    assert all(await thawed(engine, windows))
    return engine


@pytest.mark.parametrize(("loaded", "lost_chunks"), [(12, 0), (13, 2)], ids=["some is free", "little is free"])
async def test_an_auto_freeze_larger_than_memory_leaves_a_working_set_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: int, lost_chunks: int
) -> None:
    engine = await with_working_set(tmp_path, loaded)
    await engine.serve(LARGE, "large")
    await silent(engine)
    auto = next(each for each in await windows(engine) if each["name"].startswith("auto-large"))
    reads: list[Any] = []
    monkeypatch.setattr(engine.disk, "read", counted(engine.disk.read, reads))
    assert all(await thawed(engine, loaded)) and len(reads) <= lost_chunks
    forget_memory(engine)
    status = await engine.call(Op.STATUS, window_name=auto["name"])
    assert status["kv_cache"]["tiers"]["disk"] == len(LARGE) // 32
    await engine.call(Op.THAW, window_name=auto["name"], new_session_id="reader", prewarm=False)
    assert await engine.resume(LARGE, session_id="reader") == len(LARGE)
    engine.close()


async def test_a_freeze_that_a_person_asked_for_takes_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await with_working_set(tmp_path, 12)
    await frozen(engine, "large", LARGE)
    reads: list[Any] = []
    monkeypatch.setattr(engine.disk, "read", counted(engine.disk.read, reads))
    assert all(await thawed(engine, 12)) and len(reads) > 8
    engine.close()


async def test_what_an_auto_freeze_leaves_in_memory_is_loaded_from_there_and_hot_from_then_on(tmp_path: Path) -> None:
    engine = await with_working_set(tmp_path, 2)
    await engine.serve(text(50), "s")
    await silent(engine)
    name = next(each["name"] for each in await windows(engine) if each["name"].startswith("auto-s-"))
    await engine.call(Op.THAW, window_name=name, new_session_id="reader")
    assert await engine.resume(text(50), session_id="reader") == len(text(50))
    await engine.serve(LARGE, "large")
    await silent(engine)
    assert (await engine.call(Op.STATUS, window_name=name))["kv_cache"]["tiers"]["cpu"] == 3
    engine.close()
