"""The first chunks of all windows that are not private, in memory, so that most requests need no look-up.

A first chunk takes 8 bytes of its key, about 70 bytes in all. One that no window holds any more does no harm: it costs
a request a look-up, which then discards it. The catalog thread writes and the engine thread reads.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cwm_connector.core.identity import Geometry, Passport, chunk_specs
from cwm_connector.core.keys.extras import PLAIN, Extras
from cwm_connector.core.types import ChunkKey

_KEPT_BYTES: Final = 8


class Beginnings:
    """The first chunks that this engine may load."""

    def __init__(self, passport: Callable[[], Passport], geometry: Geometry) -> None:
        """`passport` returns the engine's passport of now."""
        self._passport = passport
        self._geometry = geometry
        self._keys: set[int] = set()
        self._lengths: tuple[int, ...] = ()
        """The numbers of blocks in first chunks, the largest first. A short window's only chunk is a short one."""

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: ChunkKey, tokens: int) -> None:
        """Add a first chunk with so many tokens."""
        blocks = tokens // self._geometry.block_tokens
        if blocks not in self._lengths:
            self._lengths = tuple(sorted((*self._lengths, blocks), reverse=True))
        self._keys.add(_kept(key))

    def discard(self, key: ChunkKey) -> None:
        """Remove a first chunk that no window holds any more."""
        self._keys.discard(_kept(key))

    def of(self, token_ids: Sequence[int], max_blocks: int, extras: Extras = PLAIN) -> Iterator[ChunkKey]:
        """Yield the known first chunks with which the tokens begin, the longest first, at most `max_blocks` long."""
        size = self._geometry.block_tokens
        passport = self._passport().carrying(extras.before(self._geometry.chunk_tokens))
        for blocks in self._lengths:
            if blocks <= min(max_blocks, self._geometry.blocks_per_chunk):
                key = chunk_specs(passport, self._geometry, array("i", token_ids[: blocks * size]))[0].key
                if _kept(key) in self._keys:
                    yield key


def _kept(key: ChunkKey) -> int:
    return int.from_bytes(key[:_KEPT_BYTES], "big")
