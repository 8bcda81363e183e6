"""A freeze many times larger than the CPU tier, and what others notice of it."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.units import GIB
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import CHUNK_BYTES, frozen, text

TIER_CHUNKS, LOADS = 20, 17


def slow(write: Any) -> Any:
    def slowly(*args: Any) -> Any:
        time.sleep(0.02)
        return write(*args)

    return slowly


async def test_others_load_all_they_ask_for_while_a_freeze_eight_times_the_tier_s_size_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await Miniature.started(tmp_path, cpu_cache_gb=TIER_CHUNKS * CHUNK_BYTES / GIB, pool_blocks=600)
    for number in range(LOADS):
        await frozen(engine, f"w{number}", text(number))
        await engine.call(Op.THAW, window_name=f"w{number}", prewarm=False)
    large = text(99, chunks=8 * TIER_CHUNKS)
    await engine.serve(large, "large")
    free = engine.pool.get_num_free_blocks()
    monkeypatch.setattr(engine.disk, "write", slow(engine.disk.write))
    freezing = asyncio.create_task(engine.call(Op.FREEZE, session_id="large", window_name="large"))
    while engine.pool.get_num_free_blocks() == free:  # noqa: ASYNC110 until the freeze holds its blocks
        await asyncio.sleep(0)
    loaded = [await engine.resume(text(number), session_id=f"w{number}") for number in range(LOADS)]
    assert not freezing.done(), "the loads must run beside the freeze"
    assert loaded == [len(text(0))] * LOADS
    while (pinned := free - engine.pool.get_num_free_blocks()) > 8 * TIER_CHUNKS:  # half of its blocks
        assert not freezing.done(), "blocks are given back as they are captured"
        await asyncio.sleep(0.001)
    assert pinned, "blocks were given back all at once"
    assert (await freezing)["captured_tokens"] == len(large)
    await engine.call(Op.THAW, window_name="large", new_session_id="reader", prewarm=False)
    assert await engine.resume(large, session_id="reader") == len(large)
    assert engine.pool.get_num_free_blocks() == free
    engine.close()
