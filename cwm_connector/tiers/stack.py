"""The durable tiers below CPU memory, fastest first: a read goes down until one of them has the chunk.

Transfer threads only. Nothing here checks a byte. A caller that finds a copy bad reads again, `below` that tier.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.tiers.base import ChunkId, DurableTier

BAD_COPY: Final = frozenset({Code.CHUNK_MISSING, Code.CORRUPT})
"""Failures that condemn one copy. Any other failure is the tier's, and may pass."""


class TierStack:
    """Owns its tiers and closes them."""

    def __init__(self, durable_tiers: Sequence[DurableTier], on_bad: Callable[[ChunkKey, TierName], None]) -> None:
        """`on_bad` is called, on any thread, for every copy that was looked for and is missing or corrupt."""
        self.durable_tiers = {tier.name: tier for tier in durable_tiers}
        self.on_bad = on_bad

    def read(self, chunk: ChunkId, into: memoryview, below: TierName | None = None) -> "Future[TierName]":
        """Fill `into` from the first tier that has the chunk; the future tells which. With `below`, only tiers below
        that one are asked.

        The future fails with `Code.CHUNK_MISSING` if no tier has the chunk, else with the last tier's failure: a tier
        that could not be asked may have it still. After a failure with `buffer_in_use` (see `DurableTier`) no other
        tier is asked.
        """
        names = list(self.durable_tiers)
        candidates = names if below is None else names[names.index(below) + 1 :]
        found: Future[TierName] = Future()
        missing = CWMError(Code.CHUNK_MISSING, "a chunk is in no tier any more; its tokens are computed again")
        self._try_next(chunk, into, candidates, found, missing)
        return found

    def close(self) -> None:
        """Close every tier."""
        for tier in self.durable_tiers.values():
            tier.close()

    def _try_next(
        self, chunk: ChunkId, into: memoryview, names: list[TierName], found: "Future[TierName]", failure: CWMError
    ) -> None:
        if not names:
            found.set_exception(failure)
            return
        name, rest = names[0], names[1:]

        def done(read: "Future[None]") -> None:
            problem = read.exception()
            if problem is None:
                found.set_result(name)
            elif not isinstance(problem, CWMError) or problem.context.get("buffer_in_use"):
                found.set_exception(problem)
            else:
                if problem.code in BAD_COPY:
                    self.on_bad(chunk.key, name)
                self._try_next(chunk, into, rest, found, _worse(failure, problem))

        self.durable_tiers[name].read(chunk, into).add_done_callback(done)


def _worse(one: CWMError, other: CWMError) -> CWMError:
    """Return the failure that says more. A chunk that is simply not there says least."""
    return one if other.code is Code.CHUNK_MISSING else other
