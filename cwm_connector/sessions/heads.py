"""The heads of one session: the chains of tokens and blocks that are going on in it. Engine thread only."""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from cwm_connector.core.types import Micros

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash

MAX_HEADS: Final = 16


@dataclass(frozen=True, slots=True)
class Chain:
    """What a request has computed so far."""

    token_ids: "array[int]" = field(repr=False)
    block_hashes: "tuple[BlockHash, ...]" = field(repr=False)
    """vLLM's, of the full blocks among the tokens."""
    cache_salt: str | None = field(repr=False)
    text_only: bool


@dataclass(slots=True)
class Head:
    """A chain under the name by which a freeze can mean it."""

    name: str
    named: bool
    """By the client, as a subagent's is; where no head is asked for, such a one is not default_head."""
    chain: Chain
    last_active_at: Micros
    title: str | None = None


class Heads:
    """Last active last; beyond `MAX_HEADS` the longest unused is dropped."""

    def __init__(self) -> None:
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._opened = 0

    def __iter__(self) -> Iterator[Head]:
        return iter(self._heads.values())

    def __len__(self) -> int:
        return len(self._heads)

    @property
    def tokens(self) -> int:
        return sum(len(head.chain.token_ids) for head in self)

    def extend(self, chain: Chain, name: str | None, now: Micros) -> Head:
        """Takes the chain as the new end of the head that it continues, or that `name` says."""
        head = self._continued(chain, name, now)
        if head.name not in self._heads and not head.named:
            self._opened += 1
        head.chain = _behind(head.chain, chain)
        head.last_active_at = now
        self._heads[head.name] = head
        self._heads.move_to_end(head.name)
        while len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)
        return head

    def with_running(self, running: Iterable[tuple[Chain, str | None]], now: Micros) -> dict[str, Head]:
        """The heads by name as they would be if the running requests ended now, as far as they are ahead."""
        heads = dict(self._heads)
        for chain, name in running:
            head = self._continued(chain, name, now)
            if chain.block_hashes and (head.chain is chain or len(chain.block_hashes) > len(head.chain.block_hashes)):
                heads.pop(head.name, None)
                heads[head.name] = replace(head, chain=_behind(head.chain, chain), last_active_at=now)
        return heads

    def _continued(self, chain: Chain, name: str | None, now: Micros) -> Head:
        """The head that the chain belongs to; a new one, not yet among the others, where there is none."""
        found = self._nearest(chain) if name is None else self._heads.get(name)
        return found or Head(name or self._next_name(), name is not None, chain, now)

    def _nearest(self, chain: Chain) -> Head | None:
        """The head of which the chain repeats at least half, the most of it first."""
        shared = [(_common(head.chain, chain), head) for head in self if not head.named]
        fitting = [(count, head) for count, head in shared if count and 2 * count >= len(head.chain.block_hashes)]
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else None

    def _next_name(self) -> str:
        number = self._opened + 1
        while f"h{number}" in self._heads:
            number += 1
        return f"h{number}"


def default_head(heads: Iterable[Head]) -> Head | None:
    """The head that is default_head where none is named: the last one that no client named, else the last one."""
    chosen = None
    for head in heads:
        if chosen is None or chosen.named or not head.named:
            chosen = head
    return chosen


def _behind(old: Chain, new: Chain) -> Chain:
    """`new` as what follows `old`: an image in a head once is an image in it for good."""
    return new if old.text_only else replace(new, text_only=False)


def _common(one: Chain, other: Chain) -> int:
    """How many leading hashes agree. Hashes are chained, so the last equal one decides: a binary search."""
    ours, theirs = one.block_hashes, other.block_hashes
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[middle - 1] == theirs[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
