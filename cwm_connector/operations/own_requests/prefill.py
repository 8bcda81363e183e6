"""A prefill of our own, whose blocks stay pinned for as long as its caller needs them.

A freeze computes evicted blocks again with one, and the canary computes its blocks. Control thread. Nothing here blocks
its event loop.
"""

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from cwm_connector.control.async_helpers import finish_even_if_cancelled
from cwm_connector.operations.context import EngineContext
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.save_plan import Recomputed

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


@dataclass(frozen=True, slots=True)
class Prefill:
    """A request for the engine to compute a prompt."""

    request_id: str
    token_ids: "array[int]" = field(repr=False)
    """The prompt. vLLM keeps the full blocks of all but its last token."""
    loadable: BoundWindow
    """The window that the request may load instead of computing it."""
    cache_salt: str | None = field(repr=False)
    adapter: "LoRARequest | None" = None


@asynccontextmanager
async def prefilled(
    engine: EngineContext, prefill: Prefill, wait: Callable[["Future[Recomputed]"], Awaitable[None]]
) -> AsyncIterator[Recomputed]:
    """Have the engine compute the prefill, and keep its blocks pinned until the end of the `async with`.

    `wait` returns once the future is done, or raises to give up. The request is aborted then, and if the caller is
    cancelled. Raises: what `wait` and the submission raise.
    """
    request_id, submitting, done = prefill.request_id, None, None
    submit = partial(
        engine.submit_prefill, request_id, memoryview(prefill.token_ids), prefill.cache_salt, prefill.adapter
    )
    try:
        done = await engine.on_engine_thread(lambda side: side.expect_recompute(request_id, prefill.loadable))
        submitting = asyncio.ensure_future(asyncio.to_thread(submit))
        await asyncio.shield(submitting)
        await wait(done)
    except BaseException:
        await _give_up(engine, request_id, submitting, done)
        raise
    try:
        yield done.result()
    finally:
        engine.step_queue.call(done.result().blocks.release_all)


async def _give_up(
    engine: EngineContext,
    request_id: str,
    submitting: "asyncio.Future[None] | None",
    done: "Future[Recomputed] | None",
) -> None:
    """End the request, wherever it is."""
    if submitting is not None:
        with suppress(Exception):
            await finish_even_if_cancelled(submitting)  # so that the abort comes after it
    if done is None or submitting is None or submitting.cancelled() or submitting.exception() is not None:
        engine.step_queue.call(lambda: engine.scheduler.forget_own(request_id))
    elif done.cancel():
        engine.abort_request(request_id)
    elif done.exception() is None:
        engine.step_queue.call(done.result().blocks.release_all)
