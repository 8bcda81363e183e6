"""Plan a save: what a freeze asks the scheduler side to save, and what becomes of it.

A long save is planned over several steps. vLLM may reuse a block between two of them, so each block is pinned as soon
as it is found. vLLM evicts the end of a sequence first, so the end is looked for first.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from cwm_connector import compat
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import Claim, TierName
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.job_board import JobBoard, Ticket
from cwm_connector.step.jobs import ChunkBlocks, SaveJob
from cwm_connector.step.pinned_blocks import PinnedBlocks, PinnedSave

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.request import Request


@dataclass(frozen=True, slots=True)
class SaveOrder:
    """The chunks that a freeze has to store, and the tiers that it stores them in."""

    chunks: tuple[ChunkSpec, ...]
    tiers: tuple[TierName, ...]
    claim: Claim
    asked_for: bool = True
    """False for an auto-freeze."""


@dataclass(frozen=True, slots=True)
class SavePlan:
    """A save job under way, or the number of blocks that the prefix cache has lost."""

    ticket: Ticket | None
    """The job. None if blocks are lost, in which case nothing is saved and no block is pinned."""
    lost_blocks: int = 0
    whole_chunks: int = 0
    """How many leading chunks of the order the prefix cache still has whole."""
    boundary: int = 0
    """The last block at which a model that can be resumed at boundaries alone could be resumed now."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """The blocks of a recompute's tokens, pinned until the freeze has planned its save."""

    blocks: PinnedSave
    group_sizes: tuple[int, ...]
    """How many of the blocks belong to each KV cache group."""
    computed_tokens: int
    """Tokens that were really computed, without local hits and loads."""

    def ids_by_group(self) -> tuple[tuple[int, ...], ...]:
        """Return the ids of each group's blocks."""
        ids = iter(self.blocks.block_ids)
        return tuple(tuple(islice(ids, size)) for size in self.group_sizes)


@dataclass(slots=True)
class Recompute:
    """A request of our own that computes evicted blocks again."""

    loadable: BoundWindow
    """The part of the context that is already stored, which the request may load."""
    done: "Future[Recomputed]" = field(default_factory=Future)
    """Done when the request has finished. Cancel it if nobody wants the blocks any more."""
    request: "Request | None" = None
    computed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Where the tokens of a proof's request came from. Those in neither count were computed."""

    hit_tokens: int
    """Found in vLLM's prefix cache."""
    loaded_tokens: int
    """Loaded from the tiers, and verified."""


@dataclass(slots=True)
class ProofRequest:
    """A request of our own for one token over the tokens of a window."""

    loadable: BoundWindow
    """What the request may load. Nobody else can load it through this."""
    done: "Future[Prefilled]" = field(default_factory=Future)
    """Done when the request has finished."""
    request: "Request | None" = None
    hit_tokens: int | None = None
    """The fewest that vLLM has found. It asks more than once if it has no blocks for the request."""


def plan_save(
    pool: "BlockPool", pinned: PinnedBlocks, board: JobBoard, hashes: Sequence[bytes], order: SaveOrder
) -> Iterator[Sequence[SavePlan]]:
    """Find and pin the blocks of one chunk after the other, then post the save. The last part is the plan.

    Engine thread. If some blocks are lost, nothing is pinned in the end.
    """
    save = pinned.begin(pool)
    parts: list[ChunkBlocks] = []
    lost, whole = 0, len(order.chunks)
    try:
        for index in reversed(range(len(order.chunks))):
            chunk = order.chunks[index]
            found = compat.cached_blocks(pool, hashes[chunk.first_block : chunk.end_block])
            blocks = [block for block in found if block is not None]
            if missing := chunk.blocks - len(blocks):
                lost, whole = lost + missing, index
                save.release_all()
            elif not lost:
                save.pin_before(blocks)
                parts.append(ChunkBlocks(chunk, tuple(block.block_id for block in blocks)))
            yield ()
    except BaseException:
        save.release_all()
        raise
    if lost:
        yield [SavePlan(ticket=None, lost_blocks=lost, whole_chunks=whole)]
        return
    yield [SavePlan(post_save(board, save, order, parts))]


def post_save(board: JobBoard, save: PinnedSave, order: SaveOrder, parts: Sequence[ChunkBlocks]) -> Ticket:
    """Post the save of the pinned parts, which were found from the last chunk to the first. They are let go as read."""
    save.planned()
    ticket = board.post(SaveJob(board.next_id(), tuple(reversed(parts)), order.tiers, order.claim, order.asked_for))
    ticket.on_captured = save.release
    ticket.captured.add_done_callback(lambda _: save.release_all())
    return ticket
