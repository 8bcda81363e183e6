"""The durable tiers below CPU memory, fastest first: a read goes down until one of them has the chunk.

Transfer threads only. Nothing here checks a byte: whoever finds that what he got is bad asks again, `below` that tier.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.tiers.base import ChunkId, DurableTier

BAD_COPY: Final = frozenset({Code.CHUNK_MISSING, Code.CORRUPT})
"""What a tier says of a copy that is no good; any other failure says something of the tier, and may pass."""


class TierStack:
    """Owns its stores: whoever closes it closes them."""

    def __init__(self, durable_tiers: Sequence[DurableTier], on_bad: Callable[[ChunkKey, TierName], None]) -> None:
        """`on_bad` is told, on any thread, of every copy that was looked for and is missing or corrupt."""
        self.durable_tiers = {store.name: store for store in durable_tiers}
        self.on_bad = on_bad

    def read(self, chunk: ChunkId, into: memoryview, below: TierName | None = None) -> "Future[TierName]":
        """Fills `into` from the first tier that can; tells which. With `below`, tiers up to that one are left out.

        Fails with CWM-2003 if no tier has the chunk, else with what kept the last one from giving it: a tier that
        could not be asked may have it still. `buffer_in_use` as in `DurableTier`; no other tier is asked after that.
        """
        names = list(self.durable_tiers)
        waiting = names if below is None else names[names.index(below) + 1 :]
        found: Future[TierName] = Future()
        missing = CWMError(Code.CHUNK_MISSING, "a chunk is in no tier any more; its tokens are computed again")
        self._try_next(chunk, into, waiting, found, missing)
        return found

    def close(self) -> None:
        for store in self.durable_tiers.values():
            store.close()

    def _try_next(
        self, chunk: ChunkId, into: memoryview, waiting: list[TierName], found: "Future[TierName]", otherwise: CWMError
    ) -> None:
        if not waiting:
            found.set_exception(otherwise)
            return
        name, rest = waiting[0], waiting[1:]

        def done(read: "Future[None]") -> None:
            problem = read.exception()
            if problem is None:
                found.set_result(name)
            elif not isinstance(problem, CWMError) or problem.context.get("buffer_in_use"):
                found.set_exception(problem)
            else:
                if problem.code in BAD_COPY:
                    self.on_bad(chunk.key, name)
                self._try_next(chunk, into, rest, found, _worse(otherwise, problem))

        self.durable_tiers[name].read(chunk, into).add_done_callback(done)


def _worse(one: CWMError, other: CWMError) -> CWMError:
    """That a chunk is simply not there says least."""
    return one if other.code is Code.CHUNK_MISSING else other
