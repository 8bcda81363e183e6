"""What a freeze asks the scheduler side to save, and what becomes of it."""

from concurrent.futures import Future
from dataclasses import dataclass, field

from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import Claim, TierName
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.job_board import Ticket


@dataclass(frozen=True, slots=True)
class SaveOrder:
    """The chunks that a freeze has to store, and the tiers that it stores them in."""

    chunks: tuple[ChunkSpec, ...]
    tiers: tuple[TierName, ...]
    claim: Claim


@dataclass(frozen=True, slots=True)
class SavePlan:
    """A save job under way, or the number of blocks that the prefix cache has lost."""

    ticket: Ticket | None
    """The job. None if blocks are lost, in which case nothing is saved and no block is pinned."""
    lost_blocks: int = 0
    whole_chunks: int = 0
    """How many leading chunks of the order the prefix cache still has whole."""
    computed_tokens: int = 0
    """Tokens that a preceding recompute really computed, without local hits and loads."""


@dataclass(slots=True)
class Recompute:
    """A request of our own that computes evicted blocks again. The order is saved as soon as it finishes."""

    loadable: BoundWindow
    """The part of the context that is already stored, which the request may load."""
    order: SaveOrder
    plan: "Future[SavePlan]" = field(default_factory=Future)
    computed_tokens: int = 0
