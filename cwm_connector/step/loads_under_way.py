"""Let a request wait for blocks that another request is loading, instead of loading them a second time.

vLLM adds loaded blocks to its prefix cache once it takes the loaded request up again. It does that before it looks at
requests that hold no blocks, so a request that waits finds them there. Block hashes include the salt, so requests with
different salts never wait for each other.

A request waits for `WAIT_LIMIT_S` in all. If the load fails, or the time is over, it loads by itself.

Engine thread only. Nothing here blocks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cwm_connector.step.window_matches import Match

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.request import Request

WAIT_LIMIT_S: Final = 30.0
"""How long a request waits for other requests' loads. Its own load would be queued behind them."""
MAX_WAITING: Final = 256
"""Requests that wait for a load. Further ones load by themselves."""


@dataclass(slots=True, eq=False)
class _Load:
    hashes: "Sequence[BlockHash]"
    """The block hashes of the request, from its block 0."""
    from_block: int
    to_block: int
    awaited_until: float
    """Nobody begins to wait for it later. Its request may never report its end."""
    is_over: bool = False
    has_failed: bool = False


@dataclass(slots=True)
class _Waiting:
    deadline: float
    load: _Load
    to_block: int
    """The end of the blocks that both requests have in common."""


class LoadsUnderWay:
    """The loads of requests whose blocks are not in the prefix cache yet, and the requests that wait for them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, hashes_per_block: int = 1) -> None:
        """`hashes_per_block`: how many of a request's block hashes cover one block of a match."""
        self._hashes_per_block = hashes_per_block
        self._clock = clock
        self._loads: dict[str, _Load] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._alone: set[str] = set()
        """Requests that wait for no load any more."""

    # --- the request that loads ---

    def started(self, request: "Request", from_block: int, to_block: int) -> None:
        """Record that a request loads these blocks."""
        until = self._clock() + WAIT_LIMIT_S
        self._loads[request.request_id] = _Load(request.block_hashes, from_block, to_block, until)

    def ended(self, request_id: str) -> None:
        """Record that the blocks of a request's load are in the prefix cache, or that they never will be."""
        load = self._loads.pop(request_id, None)
        if load is not None:
            load.is_over = True

    def failed(self, request_id: str) -> bool:
        """Record that a load has failed. The requests that wait for it load by themselves.

        Return False if its request no longer waits for it.
        """
        load = self._loads.pop(request_id, None)
        if load is not None:
            load.is_over = load.has_failed = True
        return load is not None

    # --- the request that waits ---

    def is_waiting(self, request_id: str, from_block: int) -> bool:
        """Return whether the request still waits for a load. Its first `from_block` blocks are in the prefix cache."""
        waiting = self._waiting.get(request_id)
        if waiting is None:
            return False
        if from_block >= waiting.to_block:
            del self._waiting[request_id]
            return False
        if waiting.load.has_failed or self._clock() >= waiting.deadline:
            del self._waiting[request_id]
            self._alone.add(request_id)
            return False
        return not waiting.load.is_over

    def wait(self, request: "Request", match: Match) -> bool:
        """Return True, and make the request wait, if another request loads at least half of the blocks of `match`."""
        request_id = request.request_id
        if request_id in self._alone or request.skip_reading_prefix_cache:
            return False
        before = self._waiting.get(request_id)
        if before is None and len(self._waiting) >= MAX_WAITING:
            return False
        now = self._clock()
        for loader, load in self._loads.items():
            mine_or_old = loader == request_id or now >= load.awaited_until
            common = 0 if mine_or_old else self._common_end(load, request.block_hashes, match)
            if 2 * (common - match.from_block) >= match.to_block - match.from_block:
                deadline = now + WAIT_LIMIT_S if before is None else before.deadline
                self._waiting[request_id] = _Waiting(deadline, load, common)
                return True
        self._waiting.pop(request_id, None)
        return False

    def finished(self, request_id: str) -> None:
        """Forget a request."""
        self.ended(request_id)
        self._waiting.pop(request_id, None)
        self._alone.discard(request_id)

    def _common_end(self, load: _Load, hashes: "Sequence[BlockHash]", match: Match) -> int:
        """Return the end of the blocks from `match.from_block` on that the load brings, or 0.

        Each hash covers all before. Most loads are ruled out by one comparison.
        """
        low, high = match.from_block, min(load.to_block, match.to_block)
        if not load.from_block <= low < high or not self._is_equal(load, hashes, low):
            return 0
        while low + 1 < high:
            middle = (low + high) // 2
            if self._is_equal(load, hashes, middle):
                low = middle
            else:
                high = middle
        return low + 1

    def _is_equal(self, load: _Load, hashes: "Sequence[BlockHash]", block: int) -> bool:
        last = (block + 1) * self._hashes_per_block - 1
        return bool(load.hashes[last] == hashes[last])
