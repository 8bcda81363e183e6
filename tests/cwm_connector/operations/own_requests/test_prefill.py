"""own_requests/prefill.py: a prefill that is given up leaves nothing, wherever it is by then."""

import asyncio
import threading
from array import array
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from cwm_connector.control.async_helpers import wait_done
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.own_requests.prefill import Prefill, prefilled
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.save_plan import Recomputed
from tests.support.miniature import Miniature
from tests.support.stores import text

NOTHING = BoundWindow(name="", token_ids=array("i"), chunks=(), usable_blocks=0)
PREFILL = Prefill("cwm-own-1", array("i", text(1)), NOTHING, "cwm-private")


async def until_it_is_there(done: "Future[Recomputed]") -> None:
    assert await wait_done(done, 20)


async def not_long(done: "Future[Recomputed]") -> None:
    if not await wait_done(done, 0.05):
        raise TimeoutError


async def computed(engine: Miniature, submit: Any = None) -> int:
    """Compute the prefill and return how many blocks it has pinned. `submit` submits in place of the engine's own."""
    context = engine.engine if submit is None else replace(engine.engine, submit_prefill=submit)
    async with prefilled(context, PREFILL, until_it_is_there) as found:
        return len(found.blocks.block_ids)


async def left(engine: Miniature) -> tuple[int, int, int]:
    """Return the blocks in use, the requests that are expected, and those that queue."""
    engine.prefills_wait = False
    await engine.serve(text(5), "last")  # a step, so that all is let go
    return engine.pool.get_num_free_blocks(), len(engine.scheduler._recomputes), len(engine.queued)


async def test_the_blocks_are_pinned_until_the_end_and_no_longer(engine: Miniature) -> None:
    free = engine.pool.get_num_free_blocks()
    async with prefilled(engine.engine, PREFILL, until_it_is_there) as found:
        pinned = len(found.blocks.block_ids)
        assert pinned > 0 and engine.pool.get_num_free_blocks() == free - pinned
    assert await left(engine) == (free, 0, 0)


async def test_a_wait_that_is_over_aborts_the_request(engine: Miniature) -> None:
    free, engine.prefills_wait = engine.pool.get_num_free_blocks(), True
    with pytest.raises(TimeoutError):
        async with prefilled(engine.engine, PREFILL, not_long):
            pytest.fail("it can't have been computed")
    assert await left(engine) == (free, 0, 0)


async def test_a_caller_that_is_cancelled_while_it_submits_leaves_no_request_behind(engine: Miniature) -> None:
    free, engine.prefills_wait = engine.pool.get_num_free_blocks(), True
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(20)
        engine.engine.submit_prefill(*arguments)

    computing = asyncio.create_task(computed(engine, slowly))
    assert await asyncio.to_thread(begun.wait, 20)
    computing.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await computing
    assert await left(engine) == (free, 0, 0)


async def test_a_submission_that_fails_is_forgotten(engine: Miniature) -> None:
    free = engine.pool.get_num_free_blocks()

    def refuse(*_: Any) -> None:
        raise CWMError(Code.STATE, "the engine is asleep")

    with pytest.raises(CWMError):
        await computed(engine, refuse)
    assert await left(engine) == (free, 0, 0)


async def test_what_was_computed_just_before_the_end_is_let_go(engine: Miniature) -> None:
    free = engine.pool.get_num_free_blocks()

    async def too_late(done: "Future[Recomputed]") -> None:
        await until_it_is_there(done)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        async with prefilled(engine.engine, PREFILL, too_late):
            pytest.fail("it was given up")
    assert await left(engine) == (free, 0, 0)
