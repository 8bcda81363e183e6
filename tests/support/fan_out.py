"""The waiting requests of a miniature engine, taken up in the order in which vLLM's scheduler does it."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.miniature import Miniature, page_of
from tests.support.vllm_parts import BLOCK_TOKENS, request


@dataclass
class _Blocks:
    ids: list[int]

    def get_block_ids(self) -> tuple[list[int], ...]:
        return (self.ids,)


@dataclass(eq=False)
class Waiting:
    """A request, and where its first blocks came from."""

    request: Any
    ids: list[int]
    cached: int = 0
    """Tokens that were in the prefix cache when it was taken up."""
    loaded: int = 0
    is_running: bool = False
    blocks: list[Any] = field(default_factory=list)

    @property
    def id(self) -> str:
        return str(self.request.request_id)


class FanOut:
    """Requests that are all there before the first is taken up. Each call is one step of the engine."""

    def __init__(self, engine: Miniature) -> None:
        self._engine = engine
        self._numbers = itertools.count(1)
        self._loading: list[Waiting] = []
        self.waiting: list[Waiting] = []

    def add(self, ids: list[int], salt: str | None = None, session_id: str | None = None) -> Waiting:
        one = request([*ids, 7], request_id=f"fan-{next(self._numbers)}", cache_salt=salt, session_id=session_id)
        added = Waiting(one, [*ids, 7])
        self._engine._do(lambda: self._engine.scheduler.request_added(one)).result(10)
        self.waiting.append(added)
        return added

    def step(self) -> None:
        self._engine._do(self._schedule).result(10)

    def finish(self) -> None:
        """Step until every request runs, and compare every page with the one that computing would have made."""
        while self.waiting or self._loading:
            self.step()

    def abort(self, one: Waiting) -> None:
        """End a request before it runs. vLLM keeps its blocks until its load has ended."""
        self._engine._do(lambda: self._engine.scheduler.request_finished(one.request)).result(10)
        self.waiting = [each for each in self.waiting if each is not one]
        self._loading = [each for each in self._loading if each is not one]

    def preempt(self, one: Waiting) -> None:
        """Take a running request's blocks away. It waits again, in front of all others."""
        self._engine._do(lambda: self._engine.pool.free_blocks(reversed(one.blocks))).result(10)
        one.is_running, one.blocks, one.request.num_computed_tokens = False, [], 0
        self.waiting.insert(0, one)

    # --- the engine thread ---

    def _schedule(self) -> None:
        loaded, bad = self._engine.worker.take_loaded(), self._engine.worker.take_bad_blocks()
        for one in [each for each in self._loading if each.id in loaded]:
            self._loading.remove(one)
            self._take_up_loaded(one, bad)
        for one in list(self.waiting):
            self._ask(one)

    def _take_up_loaded(self, one: Waiting, bad: set[int]) -> None:
        first, last = one.cached // BLOCK_TOKENS, (one.cached + one.loaded) // BLOCK_TOKENS
        good = next((at for at in range(first, last) if one.blocks[at].block_id in bad), last)
        for at in range(first, good):
            expected = page_of(one.ids[: (at + 1) * BLOCK_TOKENS])
            assert torch.equal(self._engine.cache[:, one.blocks[at].block_id], expected)
        one.loaded = (good - first) * BLOCK_TOKENS
        self._engine.pool.cache_full_blocks(one.request, one.blocks, first, good, BLOCK_TOKENS, 0)
        self._run(one)

    def _ask(self, one: Waiting) -> None:
        pool, scheduler = self._engine.pool, self._engine.scheduler
        hits = []
        for block_hash in one.request.block_hashes:
            if (found := pool.get_cached_block(block_hash, [0])) is None:
                break
            hits.append(found[0])
        external = scheduler.matched_tokens(one.request, len(hits) * BLOCK_TOKENS)
        if external is None:
            return
        self.waiting.remove(one)
        pool.touch(hits)
        one.blocks = [*hits, *pool.get_new_blocks(len(one.request.block_hashes) - len(hits))]
        one.cached, one.loaded = len(hits) * BLOCK_TOKENS, external
        if external == 0:
            self._run(one)
            return
        scheduler.blocks_allocated(one.request, _Blocks([each.block_id for each in one.blocks]), external)
        self._loading.append(one)

    def _run(self, one: Waiting) -> None:
        self._engine.scheduler.blocks_allocated(one.request, _Blocks([each.block_id for each in one.blocks]), 0)
        one.is_running = True
