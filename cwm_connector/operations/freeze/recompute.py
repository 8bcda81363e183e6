"""Has the engine compute again what a freeze needs and vLLM does not have: a request of our own for one token.

Of a model that can be resumed at boundaries alone, vLLM keeps what a resume at the end of a prompt needs. So the
request's prompt ends one token after the last block of the session. vLLM finds what it has of it and computes the rest,
which is what was generated since.

Control thread. Nothing here blocks its event loop.
"""

import itertools
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from cwm_connector.control.async_helpers import until_done
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.freeze.under_way import FreezeUnderWay, Stage
from cwm_connector.operations.own_requests.prefill import Prefill, prefilled
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.sessions.views import HeadSnapshot
from cwm_connector.step.save_plan import Recomputed, SaveOrder

RECOMPUTE_LIMIT_S: Final = 1800.0
RECOMPUTE_STEP_S: Final = 0.5
"""Between two looks at how far a recompute is."""


class Lost(Exception):
    """Blocks of the order were evicted, or never kept, and the engine has to compute them again."""

    def __init__(self, chunks: Sequence[ChunkSpec], order: SaveOrder, blocks: int, boundary: int) -> None:
        """`boundary`: where a model that can be resumed at boundaries alone could be resumed now, in blocks."""
        super().__init__()
        self.chunks, self.order, self.blocks, self.boundary = chunks, order, blocks, boundary


class Recomputer:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext) -> None:
        self._engine = engine
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def recomputing(
        self, snapshot: HeadSnapshot, lost: Lost, freeze: FreezeUnderWay
    ) -> AsyncIterator[Recomputed]:
        """Have evicted blocks computed again, and pin them until their save is planned. `chunk_lock` is free then.

        The request is aborted if the freeze is cancelled or the time is over.
        """
        tokens = self._tokens(snapshot, lost)
        freeze.report(Stage.COMPUTING, 0, len(tokens), f"computing {lost.blocks} evicted blocks again")
        prefill = Prefill(
            request_id=f"cwm-recompute-{next(self._numbers)}",
            token_ids=tokens,
            loadable=self._stored(snapshot, lost),
            cache_salt=snapshot.cache_salt,
            adapter=None if snapshot.carried.adapter is None else snapshot.carried.adapter.lora_request,
        )
        follow = partial(self._follow, prefill, freeze)
        async with prefilled(self._engine, prefill, follow) as recomputed:
            freeze.let_go = partial(self._engine.step_queue.call, recomputed.blocks.release_all)
            yield recomputed

    def _tokens(self, snapshot: HeadSnapshot, lost: Lost) -> "array[int]":
        """Return the prompt that brings the chunks back."""
        geometry = self._engine.geometry
        end = lost.chunks[-1].end_block * geometry.block_tokens
        tokens = snapshot.token_ids[: end + bool(geometry.groups)]
        if geometry.groups and len(tokens) == end:
            tokens += tokens[-1:]  # nobody stores the KV of this one, so any token will do
        return tokens

    def _stored(self, snapshot: HeadSnapshot, lost: Lost) -> BoundWindow:
        """Return what the request may load: the chunks before the first missing one, which are stored."""
        is_loaded = not self._engine.geometry.groups  # a boundary before it is in vLLM's cache, or was never stored
        return BoundWindow(
            name="",
            token_ids=snapshot.token_ids,
            chunks=tuple(lost.chunks),
            usable_blocks=lost.order.chunks[0].first_block if is_loaded else 0,
        )

    async def _follow(self, prefill: Prefill, freeze: FreezeUnderWay, done: "Future[Recomputed]") -> None:
        """Report the progress of a recompute until it is done."""
        give_up_at = time.monotonic() + RECOMPUTE_LIMIT_S
        async for _ in until_done(done, itertools.repeat(RECOMPUTE_STEP_S)):
            if time.monotonic() > give_up_at:
                raise CWMError(
                    Code.OPERATION_TIMEOUT, "evicted blocks could not be computed again in time; try again later"
                )
            there = await self._engine.on_engine_thread(lambda side: side.recomputed_tokens(prefill.request_id))
            freeze.report(Stage.COMPUTING, there, len(prefill.token_ids), "tokens computed again")
