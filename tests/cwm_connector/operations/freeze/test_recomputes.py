"""freezer.py: a freeze that must compute evicted blocks again, while vLLM is too busy to begin."""

import asyncio
from typing import Any

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.operations.freeze.under_way import Stage
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature, chunk_files
from tests.support.stores import frozen, text


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwm_connector.operations.freeze.recompute.RECOMPUTE_STEP_S", 0.01)


async def queueing(engine: Miniature, seen: list[tuple[int, int, str]]) -> "asyncio.Task[dict[str, Any]]":
    """Begin a freeze whose recompute waits in vLLM's queue."""
    await frozen(engine, "other", text(2))
    await engine.serve(text(1), "s")
    await engine.evict()
    engine.prefills_wait = True
    freezing = asyncio.create_task(
        engine.call(Op.FREEZE, lambda *told: seen.append(told), session_id="s", window_name="w")
    )
    while len(seen) < 3:  # noqa: ASYNC110 until it is waiting and has said so
        await asyncio.sleep(0.001)
    assert engine.queued
    return freezing


async def test_others_freeze_and_delete_while_a_recompute_queues(engine: Miniature) -> None:
    seen: list[tuple[int, int, str]] = []
    freezing = await queueing(engine, seen)
    async with asyncio.timeout(20):
        await frozen(engine, "b", text(3))
        await engine.call(Op.DELETE, window_name="other")
    assert not freezing.done()
    status = await engine.call(Op.STATUS, window_name="w")
    assert (status["progress"]["stage"], status["progress"]["total"]) == (Stage.COMPUTING, len(text(1)))
    engine.prefills_wait = False
    engine.begin_queued()
    result = await freezing
    assert (result["captured_tokens"], result["recomputed_tokens"]) == (96, 96)
    assert seen[-1] == (3, 3, "chunks stored") and (0, 96, "tokens computed again") in seen


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_recompute_that_is_given_up_is_aborted_and_leaves_nothing(
    engine: Miniature, cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cancelled:
        monkeypatch.setattr("cwm_connector.operations.freeze.recompute.RECOMPUTE_LIMIT_S", 0.3)
    free = engine.pool.get_num_free_blocks()
    freezing = await queueing(engine, [])
    if cancelled:
        freezing.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else CWMError, match="" if cancelled else "CWM-6002"):
        await freezing
    assert not engine.queued
    engine.prefills_wait = False
    assert (await engine.call(Op.FREEZE, session_id="s", window_name="w"))["recomputed_tokens"] == 96
    await engine.call(Op.LIST)
    await engine.serve(text(5), "last")  # a step, so that all is let go
    assert engine.pool.get_num_free_blocks() == free
    assert len(chunk_files(engine.settings.home)) == 6
