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
    from vllm.v1.core.kv_cache_utils import KVCacheBlock


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
    """vLLM will soon reuse a block without which it can't be resumed at its end, or has done so."""
    is_default: bool
    kind: HeadKind
    coverage_known: bool
    """False until the catalog was asked which of its tokens a window from before the start holds."""


def session_views(
    sessions: SessionIndex,
    require_pool: "Callable[[], BlockPool]",
    cached_tokens: Callable[[Sequence[bytes]], int],
) -> Iterator[Sequence[tuple[SessionView, int]]]:
    """Yield the sessions, each with the number of its tokens that the prefix cache has, the last active one first."""
    require_pool()
    for session in sessions.recent():
        yield [(view, cached_tokens(hashes)) for view, hashes in sessions.listed(session)]


def freezable(
    sessions: SessionIndex,
    require_pool: "Callable[[], BlockPool]",
    near: float,
    last_blocks: "Callable[[Sequence[bytes]], Sequence[KVCacheBlock]]",
) -> Iterator[Sequence[FreezableHead]]:
    """Yield every head of at least one chunk that holds unfrozen tokens, those of the last active sessions first.

    A side head counts if a chunk of it is not part of another head. `near` is the fraction of vLLM's blocks, of those
    that it reuses next, that counts as near eviction. `last_blocks` returns the cached blocks that vLLM evicts before
    the others of a head, none if it has evicted some. Of full attention that is the block at the end.
    """
    pool = require_pool()
    near_eviction: set[int] = set()
    for block_ids in compat.next_evicted(pool, int(near * pool.num_gpu_blocks)):
        near_eviction.update(block_ids)
        yield ()
    for session in sessions.recent():
        yield ()
        for head, is_default in sessions.unfrozen(session):
            blocks = None if head.running else last_blocks(session.heads.live_hashes(head))
            near_its_end = blocks is not None and (
                not blocks or any(block.block_id in near_eviction for block in blocks)
            )
            yield [_freezable_head(session.session_id, head, is_default, near_its_end)]


def _freezable_head(session_id: str, head: Head, is_default: bool, near_eviction: bool) -> FreezableHead:
    return FreezableHead(
        session_id=session_id,
        head=head.name,
        token_count=head.token_count,
        unfrozen_tokens=head.unfrozen_tokens,
        activity=head.activity,
        last_active_at=head.last_active_at,
        running=head.running is not None,
        near_eviction=near_eviction,
        is_default=is_default,
        kind=head.kind,
        coverage_known=head.coverage_known,
    )


def cached_blocks(pool: "BlockPool", hashes: Sequence[bytes]) -> int:
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
