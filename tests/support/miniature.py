"""A miniature engine: all of CWM with vLLM's own block pool and requests, but no model and no forward pass.

It is built by the same functions as vLLM's engine. `serve` leaves pages in the paged cache that depend only on the
tokens up to their block, as a prefill would. So a load is right if and only if it filled the pages that computing would
have made. The engine thread steps when it is woken, as vLLM's does.
"""

import asyncio
import hashlib
import itertools
import queue
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from cwm_connector import compat
from cwm_connector.compat import FirstToken
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.groups import HeadShape
from cwm_connector.core.identity import Passport
from cwm_connector.operations.build import EngineShape, build_engine, start_operations
from cwm_connector.operations.dispatch import Dispatcher
from cwm_connector.operations.observation.observer import RecordSpan
from cwm_connector.operations.passport.canary import canary_tokens
from cwm_connector.protocol.calls import ARGUMENTS, Op
from cwm_connector.settings import load_settings
from cwm_connector.worker.build import build_worker
from cwm_connector.worker.paged_copy import copier_for, payload_bytes
from tests.support.vllm_parts import BLOCK_TOKENS, compute, new_pool, request

T = TypeVar("T")

LAYERS, PAGE_WORDS = 2, 512
BLOCK_BYTES = LAYERS * PAGE_WORDS * 8
CHUNK_BLOCKS = 2
PASSPORT = Passport({"weights": "small", "format": "1"})


@dataclass(frozen=True)
class _Blocks:
    ids: list[int]

    def get_block_ids(self) -> tuple[list[int], ...]:
        return (self.ids,)


def page_of(token_ids: "Iterable[int]", one: Any = None) -> torch.Tensor:
    """Return the page that computing would leave for the block that ends with these tokens, `[layers, words]`.

    It depends on the adapter's files as they are now, and on the images before its end, if `one` has any.
    """
    content = array("i", token_ids)
    more = b"" if one is None or compat.is_plain(one) else _beside_tokens(one, len(content))
    seed = int.from_bytes(hashlib.sha256(content.tobytes() + more).digest()[:8], "big", signed=True)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**62), 2**62, (LAYERS, PAGE_WORDS), dtype=torch.int64, generator=generator)


def _beside_tokens(one: Any, tokens: int) -> bytes:
    """Return what a request has beside its first `tokens` token ids, the bytes of its adapter's files included."""
    files = sorted(Path(one.lora_request.lora_path).iterdir()) if one.lora_request is not None else ()
    media = [(start, name) for start, _, _, name in compat.media_of(one) if start < tokens]
    embeds = one.prompt_embeds[:tokens].numpy().tobytes() if one.prompt_embeds is not None else b""
    return (repr(media).encode() if media else b"") + embeds + b"".join(path.read_bytes() for path in files)


class Miniature:
    """One engine over `home`; `passport` as if it served those weights. Close it at the end.

    `started` makes one that can be called. The constructor alone makes one that has not recovered its store.
    """

    operations: Dispatcher
    canary: "asyncio.Task[None]"

    def __init__(
        self,
        home: Path,
        *,
        passport: Passport = PASSPORT,
        pool_blocks: int = 64,
        cpu_cache_gb: float = 0.01,
        disk_cache_gb: float = 1.0,
        canary: bool = False,
        record_span: RecordSpan | None = None,
        heads: HeadShape | str = "it is a miniature",
        **more: Any,
    ) -> None:
        """Build the engine. `more`: further settings, named as in kv_connector_extra_config."""
        limits = {"cpu_cache_gb": cpu_cache_gb, "disk_cache_gb": disk_cache_gb, "chunk_tokens": 32}
        settings = load_settings({"home": str(home), **limits, **more})
        self.settings = settings
        self.pool = new_pool(pool_blocks)
        self.cache = torch.zeros((LAYERS, pool_blocks, PAGE_WORDS), dtype=torch.int64)
        copier = copier_for(list(self.cache))
        assert payload_bytes(copier, 1) == BLOCK_BYTES
        worker = build_worker(settings, copier, rank=0, world_size=1, block_tokens=BLOCK_TOKENS)
        self.worker, self.cpu, self.durable_tiers = worker.side, worker.cpu, worker.durable_tiers  # the worker's own
        self.disk = self.durable_tiers[0]
        self._inbox: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self.asked_again: set[str] = set()
        """Requests that vLLM had to ask about more than once."""
        self._numbers = itertools.count(1)
        self._stopped = False
        self.weights = 0
        """Other weights leave other pages."""
        self.asleep = False
        """The engine is asleep or paused."""
        self.prefills_wait = False
        """Requests of CWM's own wait in the queue, as they do when vLLM is busy."""
        self.queued: dict[str, Any] = {}
        """Those that wait."""
        self.parts = build_engine(
            settings,
            EngineShape(
                model="small",
                block_tokens=BLOCK_TOKENS,
                block_bytes=BLOCK_BYTES,
                world_size=1,
                canary_tokens=canary_tokens(1000, BLOCK_TOKENS, 4096) if canary else array("i"),
            ),
            wake=lambda: self._inbox.put(None),
            submit_prefill=self._prefill,
            submit_proof=self._proof,
            abort_request=self._abort,
            is_paused=lambda: self.asleep,
            record_span=record_span,
        )
        self.scheduler = self.parts.scheduler
        self.scheduler.bind_pool(self.pool)
        self.engine = self.parts.open(passport, rank_layouts=(copier.layout,), heads=heads)
        self.catalog = self.engine.catalog
        self._thread = threading.Thread(target=self._run, daemon=True, name="miniature-engine")
        self._thread.start()

    @classmethod
    async def started(cls, home: Path, **more: Any) -> "Miniature":
        """Return an engine that has recovered its home and can be called."""
        one = cls(home, **more)
        await one.start()
        return one

    async def start(self) -> None:
        """Recover the home and begin to answer."""
        self.operations = await start_operations(self.engine)
        self.canary = asyncio.create_task(self.operations.canary.run())

    async def drop_cache(self) -> bool:
        """Drop the prefix cache as vLLM does, which asks the connector."""
        return await asyncio.wrap_future(
            self._do(lambda: self.pool.reset_prefix_cache() and self.parts.cache_dropped())
        )

    def close(self) -> None:
        self._stopped = True
        with suppress(AttributeError, RuntimeError):  # never started, or its loop is closed
            self.canary.cancel()
        self._inbox.put(None)
        self._thread.join(10)
        self.worker.close()
        self.catalog.close()
        self.parts.close()

    async def call(
        self, op: Op, progress: Callable[[int, int, str], None] | None = None, **args: Any
    ) -> dict[str, Any]:
        """Call an operation as the control server would, and return its result as a client receives it."""
        result = await self.operations.call(op, ARGUMENTS[op](**args), progress or (lambda *_: None))
        received: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(result))
        return received

    # --- as a client of the model ---

    async def serve(
        self, token_ids: Iterable[int], session_id: str | None = None, salt: str | None = None, **more: Any
    ) -> None:
        """Serve one request from beginning to end. `more`: what else vLLM's request has, such as `lora_request`."""
        ids = list(token_ids)
        one = request(ids, request_id=f"serve-{next(self._numbers)}", session_id=session_id, cache_salt=salt, **more)
        await asyncio.to_thread(self._serve, one, ids)

    async def evict(self) -> None:
        """Use every free block for other work."""

        def use_all() -> None:
            self.pool.free_blocks(self.pool.get_new_blocks(self.pool.get_num_free_blocks()))

        await asyncio.wrap_future(self._do(use_all))

    async def resume(
        self, token_ids: Iterable[int], session_id: str | None = None, salt: str | None = None, **more: Any
    ) -> int:
        """Start a request with `token_ids` and one more token, and return how many of its tokens were loaded.

        Assert that every loaded page is the one that computing would have left there.
        """
        ids = [*token_ids, 7]
        one = request(ids, request_id=f"resume-{next(self._numbers)}", session_id=session_id, cache_salt=salt, **more)
        return await asyncio.to_thread(self._resume, one, ids)

    def _resume(self, one: Any, ids: list[int]) -> int:
        self._do(lambda: self.scheduler.request_added(one)).result(10)
        try:
            return self._load(one, ids)
        finally:
            self._do(lambda: self.scheduler.request_finished(one)).result(10)

    def _load(self, one: Any, ids: list[int]) -> int:
        loadable = self._matched(one)
        if not loadable:
            return 0
        blocks = self._do(lambda: self.pool.get_new_blocks(len(one.block_hashes))).result(10)
        block_ids = [block.block_id for block in blocks]
        self._do(lambda: self.scheduler.blocks_allocated(one, _Blocks(block_ids), loadable)).result(10)
        bad = self._blocks_not_loaded(one)
        good = next((at for at, block in enumerate(block_ids) if block in bad), loadable // BLOCK_TOKENS)
        for at in range(min(good, loadable // BLOCK_TOKENS)):
            expected = page_of(ids[: (at + 1) * BLOCK_TOKENS], one) ^ self.weights
            assert torch.equal(self.cache[:, block_ids[at]], expected), f"block {at} holds other bytes"
        self._do(lambda: self.pool.free_blocks(reversed(blocks))).result(10)
        return min(good * BLOCK_TOKENS, loadable)

    def _blocks_not_loaded(self, one: Any) -> set[int]:
        """Wait for the end of a request's load and return the blocks that it could not fill."""
        bad: set[int] = set()
        loaded: set[str] = set()

        def collect() -> None:
            loaded.update(self.worker.take_loaded())
            bad.update(self.worker.take_bad_blocks())

        while one.request_id not in loaded:
            self._do(collect).result(10)
        return bad

    # --- proofs ---

    def _proof(
        self, request_id: str, token_ids: "memoryview[int]", salt: str | None, adapter: Any
    ) -> "Future[FirstToken]":
        if self.asleep:
            raise CWMError(Code.STATE, "the engine is asleep or paused; wake it and try again")
        answer: Future[FirstToken] = Future()
        ids = token_ids.tolist()
        one = request(ids, request_id=request_id, cache_salt=salt, lora_request=adapter)
        self._do(lambda: self.scheduler.request_added(one)).result(10)
        if self.prefills_wait:
            self.queued[request_id] = one
        else:
            threading.Thread(target=self._answer, args=(one, ids, answer), daemon=True).start()
        return answer

    def _answer(self, one: Any, ids: list[int], answer: "Future[FirstToken]") -> None:
        """Prefill like vLLM: find blocks in the prefix cache, load what can be loaded, compute the rest.

        The token and its logprob follow from the bytes of all pages, so that a wrong page gives another token.
        """
        blocks, found = self._do(lambda: self._with_hits(one)).result(10)
        loadable = self._matched(one, found * BLOCK_TOKENS)
        block_ids = [block.block_id for block in blocks]
        computed_from = found
        if loadable:
            self._do(lambda: self.scheduler.blocks_allocated(one, _Blocks(block_ids), loadable)).result(10)
            bad, end = self._blocks_not_loaded(one), found + loadable // BLOCK_TOKENS
            computed_from = next((at for at in range(found, end) if block_ids[at] in bad), end)
        for at in range(computed_from, len(blocks)):
            self.cache[:, block_ids[at]] = page_of(ids[: (at + 1) * BLOCK_TOKENS], one) ^ self.weights
        pages = hashlib.sha256(self.cache[:, block_ids].numpy().tobytes() + array("i", ids).tobytes()).digest()

        def finish() -> None:
            self.scheduler.request_finished(one)
            self.pool.free_blocks(reversed(blocks))

        self._do(finish).result(10)
        answer.set_result(FirstToken(pages[0], -1 / (1 + pages[1])))

    def _with_hits(self, one: Any) -> tuple[list[Any], int]:
        """Return blocks for a request, and how many of them the prefix cache had already."""
        usable = one.block_hashes[: (one.num_tokens - 1) // BLOCK_TOKENS]
        hits = list(itertools.takewhile(lambda block: block is not None, compat.cached_blocks(self.pool, usable)))
        self.pool.touch(hits)
        return [*hits, *self.pool.get_new_blocks(len(one.block_hashes) - len(hits))], len(hits)

    # --- the engine thread ---

    def _do(self, function: Callable[[], T]) -> "Future[T]":
        answer: Future[T] = Future()
        self._inbox.put((function, answer))
        return answer

    def _run(self) -> None:
        while not self._stopped:
            message = self._inbox.get()
            if message is not None:
                function, answer = message
                try:
                    answer.set_result(function())
                except BaseException as problem:
                    answer.set_exception(problem)
            self._step()
            while self.scheduler.wants_step and self._inbox.empty():  # as vLLM does, which asks has_pending_push_work
                self._step()

    def _step(self) -> None:
        jobs = self.scheduler.step_jobs()
        self.worker.submit(jobs.jobs)
        if (reports := self.worker.take_reports()) is not None:
            self.scheduler.deliver(reports)

    # --- as vLLM serves a request, on the caller's thread ---

    def _serve(self, one: Any, ids: list[int]) -> None:
        self._do(lambda: self.scheduler.request_added(one)).result(10)
        self._matched(one)
        self._do(lambda: self._compute(one, ids)).result(10)

    def _compute(self, one: Any, ids: list[int]) -> None:
        blocks = compute(self.pool, one)
        for at, block in enumerate(blocks):
            self.cache[:, block.block_id] = page_of(ids[: (at + 1) * BLOCK_TOKENS], one) ^ self.weights
        self.scheduler.request_finished(one)
        self._step()
        self.pool.free_blocks(reversed(blocks))

    def _matched(self, one: Any, computed: int = 0) -> int:
        """Ask how much can be loaded, once a step while the answer is None. Other requests go on meanwhile."""
        while (matched := self._do(lambda: self.scheduler.matched_tokens(one, computed)).result(10)) is None:
            self.asked_again.add(one.request_id)
            time.sleep(0.001)
        return matched

    def _prefill(self, request_id: str, token_ids: "memoryview[int]", salt: str | None, adapter: Any) -> None:
        ids = token_ids.tolist()
        one = request(ids, request_id=request_id, cache_salt=salt, lora_request=adapter)
        if self.prefills_wait:
            self._do(lambda: self.scheduler.request_added(one)).result(10)
            self.queued[request_id] = one
        else:
            threading.Thread(target=self._serve, args=(one, ids), daemon=True).start()

    def begin_queued(self) -> None:
        """Serve the requests that have waited."""
        for one in self.queued.values():
            threading.Thread(target=self._serve, args=(one, list(one.prompt_token_ids)), daemon=True).start()
        self.queued.clear()

    def _abort(self, request_id: str) -> None:
        if (one := self.queued.pop(request_id, None)) is not None:
            self._do(lambda: self.scheduler.request_finished(one))


def chunk_files(home: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return sorted(path for path in (home / "chunks").iterdir() if path.name.endswith(".data"))
    return []
