"""Look at all sessions in small parts, so that no step of the engine is held up by them.

Each part is one session, one head or a few free blocks. A caller on another thread gives the iterator to
`StepQueue.collect`, which takes some parts in each step. Between two steps sessions go on, come and go. Each one is
seen once at most.

Engine thread only. Nothing here blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwm_connector import compat
from cwm_connector.core.types import Micros
from cwm_connector.sessions.head import Head
from cwm_connector.sessions.index import SessionIndex
from cwm_connector.sessions.views import HeadKind, SessionView

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool


@dataclass(frozen=True, slots=True)
class FreezableHead:
    """A head with unfrozen tokens, with the facts that auto-freeze decides by."""

    session_id: str
    head: str
    token_count: int
    unfrozen_tokens: int
    activity: int
    """The index's count of turns when the head was last active. It grows with each turn, which a clock need not."""
    last_active_at: Micros
    running: bool
    near_eviction: bool
    """vLLM will soon reuse the block at its end, or has done so."""
    is_default: bool
    kind: HeadKind
    coverage_known: bool
    """False until the catalog was asked which of its tokens a window from before the start holds."""


def session_views(
    sessions: SessionIndex, require_pool: "Callable[[], BlockPool]", block_tokens: int
) -> Iterator[Sequence[tuple[SessionView, int]]]:
    """Yield the sessions, each with the number of its tokens that the prefix cache has, the last active one first."""
    pool = require_pool()
    for session in sessions.recent():
        yield [(view, block_tokens * _cached_blocks(pool, hashes)) for view, hashes in sessions.listed(session)]


def freezable(
    sessions: SessionIndex, require_pool: "Callable[[], BlockPool]", near: float
) -> Iterator[Sequence[FreezableHead]]:
    """Yield every head of at least one chunk that holds unfrozen tokens, those of the last active sessions first.

    A side head counts if a chunk of it is not part of another head. `near` is the fraction of vLLM's blocks, of those
    that it reuses next, that counts as near eviction. vLLM evicts the end of a head before its beginning, so only the
    last block is checked and the cost does not depend on the length of the head.
    """
    pool = require_pool()
    near_eviction: set[int] = set()
    for block_ids in compat.next_evicted(pool, int(near * pool.num_gpu_blocks)):
        near_eviction.update(block_ids)
        yield ()
    for session in sessions.recent():
        yield ()
        for head, is_default in sessions.unfrozen(session):
            yield [_freezable_head(session.session_id, head, is_default, pool, near_eviction)]


def _freezable_head(
    session_id: str, head: Head, is_default: bool, pool: "BlockPool", near_eviction: set[int]
) -> FreezableHead:
    running = head.running is not None
    (last,) = compat.cached_blocks(pool, [head.last_block])
    return FreezableHead(
        session_id=session_id,
        head=head.name,
        token_count=head.token_count,
        unfrozen_tokens=head.unfrozen_tokens,
        activity=head.activity,
        last_active_at=head.last_active_at,
        running=running,
        near_eviction=not running and (last is None or last.block_id in near_eviction),
        is_default=is_default,
        kind=head.kind,
        coverage_known=head.coverage_known,
    )


def _cached_blocks(pool: "BlockPool", hashes: Sequence[bytes]) -> int:
    """Return how many leading blocks the prefix cache has. vLLM evicts a chain from its end.

    Most chains are cached to their end or not at all, so these blocks are looked up first.
    """
    if not hashes or not _is_cached(pool, hashes[0]):
        return 0
    low, high = 1, len(hashes)
    middle = high
    while low < high:
        if _is_cached(pool, hashes[middle - 1]):
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return low


def _is_cached(pool: "BlockPool", block_hash: bytes) -> bool:
    return compat.cached_blocks(pool, [block_hash])[0] is not None
