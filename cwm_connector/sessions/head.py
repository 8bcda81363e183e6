"""One head of a session, how far a request has come, and what the two have in common.

Engine thread only. Nothing here blocks.
"""

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cwm_connector import compat
from cwm_connector.core.speaker import Hints, RequestKind
from cwm_connector.core.types import Micros
from cwm_connector.sessions.block_tree import BlockTree, Fork, Match, Node, common_blocks
from cwm_connector.sessions.extras.carried import PLAIN_REQUEST, Carried
from cwm_connector.sessions.unnamed import compared_tokens
from cwm_connector.sessions.views import HeadKind, HeadSummary

if TYPE_CHECKING:
    from vllm.v1.request import Request

HEAD_BYTES: Final = 1050
"""Python's own overhead for a head: the object, its name, its title, its numbers and its entry in the table."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The first `token_count` of some tokens, and the hashes of the full blocks among them."""

    token_ids: Sequence[int] = field(repr=False)
    block_hashes: Sequence[bytes] = field(repr=False)
    token_count: int
    blocks: int
    cache_salt: str | None = field(repr=False)
    carried: Carried = PLAIN_REQUEST

    def ids(self, start: int, end: int | None = None) -> "array[int]":
        """Return the ids of the tokens [start, end)."""
        limit = self.token_count if end is None else min(end, self.token_count)
        return array("i", self.token_ids[start:limit])


def computed_chain(request: "Request", block_tokens: int, carried: Carried) -> Chain:
    """Return the request's computed tokens.

    vLLM counts the tokens of unfinished steps as computed. They are left out here. After a preemption there can be more
    of them than it counts as computed.
    """
    computed = max(0, min(request.num_computed_tokens - request.num_in_flight_tokens, request.num_tokens))
    blocks = min(computed // block_tokens, len(request.block_hashes))
    return Chain(
        token_ids=request.all_token_ids,
        block_hashes=request.block_hashes,
        token_count=min(computed, (blocks + 1) * block_tokens - 1),
        blocks=blocks,
        cache_salt=request.cache_salt,
        carried=carried,
    )


@dataclass(slots=True, eq=False)
class Turn:
    """A request of a session, from its arrival to its end."""

    request: "Request"
    name: str | None
    """The head that the client named."""
    hints: Hints
    prompt_tokens: int
    activity: int
    """The index's counter when it arrived, then when it ended."""
    carried: Carried = PLAIN_REQUEST
    covered_tokens: int = 0
    """How many of its tokens a window was made of while it ran."""
    coverage_known: bool = False
    resumes: bool = False
    """Its salt was made by a thaw into the session, and its prompt begins as that window does."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a turn has come."""

    turn: Turn
    chain: Chain
    is_whole: bool
    """Its whole prompt is computed. The last few tokens of a prompt are not compared and do not count."""
    is_structured: bool
    """Its answer must match a schema, and no tools ask for that."""
    streams: bool

    @property
    def prompt_tokens(self) -> int:
        """Return the length of its prompt."""
        return self.turn.prompt_tokens


def progress_of(turn: Turn, block_tokens: int) -> Progress:
    """Return how far the turn has come."""
    chain = computed_chain(turn.request, block_tokens, turn.carried)
    return Progress(
        turn=turn,
        chain=chain,
        is_whole=chain.token_count >= compared_tokens(turn.prompt_tokens),
        is_structured=compat.answers_by_schema(turn.request) and turn.hints.has_tools is not True,
        streams=compat.streams_its_answer(turn.request),
    )


@dataclass(slots=True, eq=False)
class Head:
    """A chain that a freeze can take."""

    name: str
    kind: HeadKind
    token_count: int
    cache_salt: str | None = field(repr=False)
    carried: Carried
    prompt_tokens: int
    """The length of the last prompt that was computed whole. The length of the chain if none was."""
    is_partial: bool
    """No prompt was computed whole yet."""
    activity: int
    last_active_at: Micros
    has_tools: bool | None = None
    opening: str | None = None
    streams: bool = True
    turns: int = 0
    """How many requests have continued it."""
    is_main_line: bool = False
    """It was the main head, and so was every main head after it a branch of it."""
    covered_tokens: int = 0
    """How many of its tokens a window holds."""
    coverage_known: bool = False
    """A window made before the engine's start may hold some of it. The control thread has not looked yet."""
    title: str | None = field(default=None, repr=False)
    node: Node | None = field(default=None, repr=False)
    """The end of its full blocks in the tree. None for a head that a running request has opened."""
    tail: "array[int]" = field(default_factory=lambda: array("i"), repr=False)
    """The tokens after its last full block."""
    running: Progress | None = field(default=None, repr=False)
    """The running request that is ahead of what was stored. Its chain is then the head's."""

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the head takes in memory, without its blocks."""
        return HEAD_BYTES + sys.getsizeof(self.tail) + self.carried.size_bytes

    @property
    def last_block(self) -> bytes:
        """Return the hash of its last full block."""
        if self.running is not None:
            return self.running.chain.block_hashes[self.running.chain.blocks - 1]
        assert self.node is not None
        return self.node.hashes[-1]

    @property
    def is_side(self) -> bool:
        """Return whether it is not a turn of any conversation."""
        return self.kind is HeadKind.SIDE

    @property
    def unfrozen_tokens(self) -> int:
        """Return how many of its tokens no window holds."""
        return self.token_count - self.covered_tokens

    def summary(self) -> HeadSummary:
        """Return what is listed of it."""
        return HeadSummary(self.name, self.token_count, self.last_active_at, self.title, self.kind)


def is_hinted_side(hints: Hints) -> bool:
    """Return whether the client's own fields say that the request is not a turn of the conversation."""
    return hints.kind is not RequestKind.TURN


class SharedTokens:
    """How many leading tokens the chain of a request and each of a session's heads have in common.

    Blocks are compared by their hashes. The tokens of the block in which the two part are compared only when somebody
    asks, because most heads part so early that no rule depends on it. Valid until a head is stored.
    """

    def __init__(self, tree: BlockTree, chain: Chain, match: Match) -> None:
        """`match`: how far the chain is in the tree that holds the heads."""
        self._tree = tree
        self._chain = chain
        self._match = match
        self._bounds: dict[Head, int] = {}
        self._exact: dict[Head, int] = {}
        self._in_next_block: dict[Node, int] = {}

    def __call__(self, head: Head) -> int:
        """Return how many tokens they have in common."""
        found = self._exact.get(head)
        if found is None:
            found = self._exact[head] = self._compared(head)
        return found

    def at_most(self, heads: Sequence[Head]) -> list[int]:
        """Return for each of the heads how many tokens they have in common, or up to a block more."""
        bounds = self._bounds
        for head in heads:
            if head not in bounds:
                bounds[head] = self._bound(head, self._fork_of(head))
        return [bounds[head] for head in heads]

    def most(self, heads: Sequence[Head]) -> tuple[Head | None, int]:
        """Return the first of the heads that have most in common with the chain, and how many tokens that are."""
        bounds = self.at_most(heads)
        least = max(bounds, default=0) - self._tree.block_tokens
        near = [head for head, bound in zip(heads, bounds, strict=True) if bound > least]
        best = max(near, key=self, default=None)
        return best, 0 if best is None else self(best)

    def _bound(self, head: Head, fork: Fork) -> int:
        """Return how many tokens they have in common at most, if they part there."""
        chain = self._chain
        if not fork.blocks and head.cache_salt != chain.cache_salt:
            return 0  # the hashes would tell, but no full block is equal
        bound = (fork.blocks + 1) * self._tree.block_tokens - 1
        if head.carried is not chain.carried:
            bound = min(bound, head.carried.common_tokens(chain.carried))
        return bound if bound < head.token_count else head.token_count

    def _fork_of(self, head: Head) -> Fork:
        if head.running is None:
            assert head.node is not None
            return self._match.fork(head.node)
        ours, theirs = self._chain, head.running.chain
        limit = min(ours.blocks, theirs.blocks)
        return Fork(common_blocks(theirs.block_hashes, ours.block_hashes, limit), None)

    def _compared(self, head: Head) -> int:
        fork = self._fork_of(head)
        bound = self._bound(head, fork)
        start = fork.blocks * self._tree.block_tokens
        if bound <= start:
            return bound
        if fork.node is None:
            return min(bound, start + self._common_start(self._after(head, start), start))
        if fork.node not in self._in_next_block:
            ids = self._tree.block_ids(fork.node, fork.blocks)
            self._in_next_block[fork.node] = self._common_start(ids, start)
        return min(bound, start + self._in_next_block[fork.node])

    def _after(self, head: Head, start: int) -> "array[int]":
        """Return the ids of the head's tokens from `start` on, at most a block. A stored head ends within it."""
        return head.tail if head.running is None else head.running.chain.ids(start, start + self._tree.block_tokens)

    def _common_start(self, ours: "array[int]", start: int) -> int:
        """Return how many of the tokens of a block, or of less, agree with the chain's from `start` on."""
        theirs = self._chain.ids(start, start + len(ours))
        if not ours or not theirs or ours[0] != theirs[0]:
            return 0
        if ours == theirs:
            return len(ours)
        return next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(theirs))
