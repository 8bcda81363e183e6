"""Choose how much of a window is loaded and how much is computed, from the measured speeds.

    always    everything is loaded. The conversation goes on with the window's own KV, bit for bit.
    auto      as much as is loaded sooner than it is computed. What is computed again is right but need not be equal
              to the window bit for bit.

Any thread. Nothing here blocks, and nothing is read: a choice needs nothing but numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwm_connector.core.identity import ChunkSpec, Geometry
from cwm_connector.core.types import TierName
from cwm_connector.settings import LoadPolicy
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.prefill_speed import PrefillSpeed
from cwm_connector.step.read_speed import ReadSpeed


@dataclass(frozen=True, slots=True)
class Costs:
    """What it takes to load blocks and to compute them. `computing_s` is None before the first prompt."""

    loading_s: float
    computing_s: float | None
    is_measured: bool
    """Whether every tier that has some of the blocks was measured."""

    @property
    def computing_is_faster(self) -> bool | None:
        """Return which of the two is faster, or None if that is unknown."""
        if self.computing_s is None or not self.is_measured:
            return None
        return self.computing_s < self.loading_s


class LoadChoice:
    """The policy of one engine."""

    def __init__(
        self,
        policy: LoadPolicy,
        geometry: Geometry,
        locations: ChunkLocations,
        prefill_speed: PrefillSpeed,
        read_speed: ReadSpeed,
    ) -> None:
        self.policy = policy
        self._geometry = geometry
        self._locations = locations
        self._prefill_speed = prefill_speed
        self._read_speed = read_speed

    def end_of_load(self, chunks: Sequence[ChunkSpec], from_block: int, to_block: int) -> int:
        """Return the block up to which [from_block, to_block) is loaded. With `always` that is `to_block`.

        The rest is computed. A load can only be a beginning, so the best end is looked for among the chunks' ends.
        """
        prefill = self._prefill_speed.costs()
        if self.policy is LoadPolicy.ALWAYS or prefill is None:
            return to_block
        if self._geometry.groups:  # all or nothing: there is no boundary in between
            return from_block if self.costs(chunks, from_block, to_block).computing_is_faster else to_block
        best, most_saved, saved = from_block, 0.0, 0.0
        for end, blocks, tier in self._pieces(chunks, from_block, to_block):
            tokens = self._tokens(blocks)
            saved += prefill.seconds(tokens, self._tokens(end - blocks)) - self._read_speed.seconds_for(tier, tokens)
            if saved >= most_saved:
                best, most_saved = end, saved
        return best

    def costs(self, chunks: Sequence[ChunkSpec], from_block: int, to_block: int) -> Costs:
        """Return what it takes to load these blocks, and to compute them."""
        pieces = tuple(self._pieces(chunks, from_block, to_block))
        return Costs(
            loading_s=sum(self._read_speed.seconds_for(tier, self._tokens(blocks)) for _, blocks, tier in pieces),
            computing_s=self._prefill_speed.seconds_for(self._tokens(to_block - from_block), self._tokens(from_block)),
            is_measured=all(self._read_speed.knows(tier) for tier in {tier for _, _, tier in pieces}),
        )

    # --- internal ---

    def _tokens(self, blocks: int) -> int:
        return blocks * self._geometry.block_tokens

    def _pieces(
        self, chunks: Sequence[ChunkSpec], from_block: int, to_block: int
    ) -> Iterator[tuple[int, int, TierName]]:
        """Yield for each chunk with some of the blocks: their end, their number, and the tier that has them."""
        first = 0 if self._geometry.groups else from_block // self._geometry.blocks_per_chunk
        for chunk in chunks[first:]:
            if chunk.first_block >= to_block:
                return
            start, end = max(chunk.first_block, from_block), min(chunk.end_block, to_block)
            if start >= end:
                continue
            # A chunk that no tier is known to have is still looked for on disk.
            yield end, end - start, self._locations.fastest(chunk.key) or TierName.DISK
