"""The heads of one session: the chains of tokens and blocks that its requests continue.

Engine thread only. Nothing here blocks. A `Chain` is immutable and may be handed to other threads.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from cwm_connector.core.types import Micros

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash

MAX_HEADS: Final = 16
"""Heads of one session. When there are more, the one that was unused for longest is dropped."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The tokens that a request has computed so far."""

    token_ids: "array[int]" = field(repr=False)
    block_hashes: "tuple[BlockHash, ...]" = field(repr=False)
    """vLLM's hashes of the full blocks among the tokens."""
    cache_salt: str | None = field(repr=False)
    text_only: bool


@dataclass(slots=True)
class Head:
    """A chain with the name that a freeze can ask for."""

    name: str
    named: bool
    """Whether the client chose the name, as it does for a subagent. `default_head` prefers the other heads."""
    chain: Chain
    last_active_at: Micros
    title: str | None = None


class Heads:
    """The heads of one session, the last active one last."""

    def __init__(self) -> None:
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._opened = 0

    def __iter__(self) -> Iterator[Head]:
        return iter(self._heads.values())

    def __len__(self) -> int:
        return len(self._heads)

    @property
    def tokens(self) -> int:
        """Return the number of tokens in all heads together."""
        return sum(len(head.chain.token_ids) for head in self)

    def extend(self, chain: Chain, name: str | None, now: Micros) -> Head:
        """Make the chain the new end of the head called `name`, or of the head that it continues if `name` is None."""
        head = self._continued(chain, name, now)
        if head.name not in self._heads and not head.named:
            self._opened += 1
        head.chain = _following(head.chain, chain)
        head.last_active_at = now
        self._heads[head.name] = head
        self._heads.move_to_end(head.name)
        while len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)
        return head

    def with_running(self, running: Iterable[tuple[Chain, str | None]], now: Micros) -> dict[str, Head]:
        """Return the heads by name as they would be if the running requests ended now.

        A running request counts as soon as it has more full blocks than the head that it continues.
        """
        heads = dict(self._heads)
        for chain, name in running:
            head = self._continued(chain, name, now)
            if chain.block_hashes and (head.chain is chain or len(chain.block_hashes) > len(head.chain.block_hashes)):
                heads.pop(head.name, None)
                heads[head.name] = replace(head, chain=_following(head.chain, chain), last_active_at=now)
        return heads

    def _continued(self, chain: Chain, name: str | None, now: Micros) -> Head:
        """Return the head that the chain belongs to. If there is none, return a new one that is not yet stored."""
        found = self._nearest(chain) if name is None else self._heads.get(name)
        return found or Head(name=name or self._next_name(), named=name is not None, chain=chain, last_active_at=now)

    def _nearest(self, chain: Chain) -> Head | None:
        """Return the head with which the chain has most in common, at least half of the head's blocks."""
        shared = [(_common_blocks(head.chain, chain), head) for head in self if not head.named]
        fitting = [(count, head) for count, head in shared if count and 2 * count >= len(head.chain.block_hashes)]
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else None

    def _next_name(self) -> str:
        number = self._opened + 1
        while f"h{number}" in self._heads:
            number += 1
        return f"h{number}"


def default_head(heads: Iterable[Head]) -> Head | None:
    """Return the head to use when none is asked for: the last one that no client named, or else the last one."""
    chosen = None
    for head in heads:
        if chosen is None or chosen.named or not head.named:
            chosen = head
    return chosen


def _following(old: Chain, new: Chain) -> Chain:
    """Return `new` as the successor of `old`. A head that once contained an image never counts as text again."""
    return new if old.text_only else replace(new, text_only=False)


def _common_blocks(one: Chain, other: Chain) -> int:
    """Return how many leading hashes agree. Each hash covers those before it, so a binary search finds the last."""
    ours, theirs = one.block_hashes, other.block_hashes
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[middle - 1] == theirs[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
