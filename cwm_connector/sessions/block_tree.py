"""The tokens and block hashes of one session's heads, with a part that several heads share stored once.

Engine thread only. Nothing here blocks.

A node is a run of full blocks. Its children continue it in different ways. A head ends at the end of a node:

    (root) -- system, tools, 6,000 blocks -- turn 7 of the conversation      a head ends here
                                          \\- a suggestion after turn 6       another one ends here

vLLM's hash of a block covers all blocks before it. Two chains therefore have a block in common if the hashes at its
position are equal, and a binary search finds the last common block.
"""

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, overload

import numpy as np

from cwm_connector.sessions.token_run import TokenRun

NODE_BYTES: Final = 700
"""Python's own overhead for a node: the objects, and the entry in its parent's table."""


class HashRun(Sequence[bytes]):
    """Block hashes stored end to end. A list would take more than twice as much memory."""

    __slots__ = ("_ends", "_joined")

    def __init__(self, hashes: Iterable[bytes] = ()) -> None:
        self._joined = bytearray()
        self._ends = array("I")
        self.extend(hashes)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[bytes, ...]: ...

    def __getitem__(self, at: int | slice) -> bytes | tuple[bytes, ...]:
        ends = self._ends
        if isinstance(at, slice):
            return tuple(self[each] for each in range(*at.indices(len(ends))))
        start = ends[at - 1] if at % len(ends) else 0
        return bytes(self._joined[start : ends[at]])

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the hashes take in memory."""
        return sys.getsizeof(self._joined) + sys.getsizeof(self._ends)

    def extend(self, hashes: Iterable[bytes]) -> None:
        """Append the hashes."""
        added = list(hashes)
        lengths = np.fromiter(map(len, added), dtype=np.uint32, count=len(added))
        self._ends.frombytes((np.cumsum(lengths, dtype=np.uint32) + np.uint32(len(self._joined))).tobytes())
        self._joined += b"".join(added)

    def append_run(self, other: "HashRun") -> None:
        """Append all hashes of another run."""
        offset = len(self._joined)
        self._ends.frombytes((np.frombuffer(other._ends, dtype=np.uint32) + np.uint32(offset)).tobytes())
        self._joined += other._joined

    def take_first(self, count: int) -> "HashRun":
        """Remove the first `count` hashes and return them."""
        cut = self._ends[count - 1] if count else 0
        first = HashRun()
        first._joined, first._ends = self._joined[:cut], self._ends[:count]
        self._joined = self._joined[cut:]
        rest = array("I")
        rest.frombytes((np.frombuffer(self._ends, dtype=np.uint32)[count:] - np.uint32(cut)).tobytes())
        self._ends = rest
        return first

    def copy(self) -> "HashRun":
        """Return a copy that does not change any more."""
        other = HashRun()
        other._joined, other._ends = self._joined[:], self._ends[:]
        return other


class ChainHashes(Sequence[bytes]):
    """The hashes of a whole chain, over the runs of its nodes."""

    __slots__ = ("_runs", "_starts", "_total")

    def __init__(self, runs: Sequence[HashRun]) -> None:
        self._runs = runs
        self._starts = [0, *accumulate(map(len, runs))][:-1]
        self._total = sum(map(len, runs))

    def __len__(self) -> int:
        return self._total

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[bytes, ...]: ...

    def __getitem__(self, at: int | slice) -> bytes | tuple[bytes, ...]:
        if isinstance(at, slice):
            return tuple(self[each] for each in range(*at.indices(self._total)))
        if not -self._total <= at < self._total:
            raise IndexError(at)
        position = at % self._total
        run = bisect_right(self._starts, position) - 1
        return self._runs[run][position - self._starts[run]]


@dataclass(slots=True, eq=False)
class Node:
    """A run of full blocks."""

    parent: "Node | None" = field(repr=False)
    first: int
    """The position of its first block in the chain."""
    hashes: HashRun = field(repr=False)
    tokens: TokenRun = field(repr=False)
    children: "dict[bytes, Node]" = field(default_factory=dict, repr=False)
    """By the hash of the child's first block."""
    heads: int = 0
    """How many heads end here."""
    counted_bytes: int = 0

    @property
    def end(self) -> int:
        """Return the position after its last block."""
        return self.first + len(self.hashes)

    def path(self) -> "list[Node]":
        """Return the nodes from the root to this one, without the root."""
        nodes: list[Node] = []
        node: Node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


@dataclass(frozen=True, slots=True)
class Match:
    """How far a chain is in the tree already."""

    path: frozenset[Node]
    """The nodes that the chain goes through, with the root."""
    node: Node
    """The last one of them. The chain may leave it before its end."""
    blocks: int

    def common_blocks(self, node: Node) -> int:
        """Return how many blocks the chain has in common with the chain that ends with `node`."""
        while node not in self.path:
            assert node.parent is not None
            node = node.parent
        return min(node.end, self.blocks)


class BlockTree:
    """The chains of one session."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self.root = Node(None, 0, HashRun(), TokenRun())
        self.size_bytes = 0
        self._unpacked: dict[Node, None] = {}

    def match(self, hashes: Sequence[bytes], blocks: int) -> Match:
        """Find the part of the chain of the first `blocks` hashes that the tree has already."""
        node, at = self.root, 0
        path = [node]
        while at < blocks and (child := node.children.get(hashes[at])) is not None:
            node = child
            path.append(node)
            length = len(node.hashes)
            common = common_blocks(node.hashes, hashes, blocks - at, at)
            at += common
            if common < length:
                break
        return Match(frozenset(path), node, at)

    def attach(self, match: Match, hashes: Sequence[bytes], tokens: TokenRun) -> Node:
        """Add a head to the chain that `match` found, continued by `hashes` and the ids of their tokens.

        Return the node at which the head ends.
        """
        node = match.node if match.blocks == match.node.end else self._split(match.node, match.blocks)
        if hashes:
            child = Node(node, match.blocks, HashRun(hashes), tokens)
            node.children[hashes[0]] = child
            node = child
        node.heads += 1
        self._count(node)
        return node

    def detach(self, node: Node) -> None:
        """Remove a head that ends at `node`, and the blocks that no other head uses."""
        node.heads -= 1
        while node.parent is not None and not node.heads and not node.children:
            parent = node.parent
            del parent.children[node.hashes[0]]
            self._unpacked.pop(node, None)
            self.size_bytes -= node.counted_bytes
            node = parent
        self.join(node)

    def join(self, node: Node) -> None:
        """Make a node that no head ends at and its only child one node. The child stays the same object."""
        if node.parent is None or node.heads or len(node.children) != 1:
            return
        (child,) = node.children.values()
        node.hashes.append_run(child.hashes)
        node.tokens.append(child.tokens)
        child.hashes, child.tokens = node.hashes, node.tokens
        child.first, child.parent = node.first, node.parent
        node.parent.children[child.hashes[0]] = child
        self._unpacked.pop(node, None)
        self.size_bytes -= node.counted_bytes
        self._count(child)

    def token_ids(self, node: Node, start: int, end: int) -> "array[int]":
        """Return the ids of the tokens [start, end) of the chain that ends with `node`. A chain may end before."""
        found = array("i")
        for each in self._nodes_back_to(node, start):
            offset = each.first * self._block_tokens
            found = each.tokens.ids(start - offset, end - offset) + found
        return found

    def tokens(self, node: Node, end: int) -> TokenRun:
        """Return the first `end` ids of the chain that ends with `node`, without packing any. A chain may end before.

        The caller may hand it to another thread.
        """
        run = TokenRun()
        for each in node.path():
            offset = each.first * self._block_tokens
            run.append(each.tokens.part(0, end - offset))
        return run

    @property
    def is_packed(self) -> bool:
        """Return whether no token lies in a request's list any more."""
        return not self._unpacked

    def pack(self, limit: int) -> None:
        """Pack at most `limit` tokens that lie in a request's list."""
        node = next(iter(self._unpacked), None)
        if node is not None:
            node.tokens.pack(limit)
            self._count(node)

    def _nodes_back_to(self, node: Node, start: int) -> Iterator[Node]:
        """Yield the nodes of the chain from its end back to the one with the token `start`."""
        while node.parent is not None:
            yield node
            if node.first * self._block_tokens <= start:
                return
            node = node.parent

    def _split(self, node: Node, at: int) -> Node:
        """Cut the node before the block at position `at`. Return the new node of the blocks before it."""
        assert node.parent is not None
        count = at - node.first
        tokens = count * self._block_tokens
        before = Node(node.parent, node.first, node.hashes.take_first(count), node.tokens.part(0, tokens))
        node.parent.children[before.hashes[0]] = before
        node.tokens = node.tokens.part(tokens, len(node.tokens))
        node.parent, node.first = before, at
        before.children[node.hashes[0]] = node
        self._count(before)
        self._count(node)
        return before

    def _count(self, node: Node) -> None:
        size = NODE_BYTES + node.hashes.size_bytes + node.tokens.size_bytes
        self.size_bytes += size - node.counted_bytes
        node.counted_bytes = size
        if node.tokens.is_packed:
            self._unpacked.pop(node, None)
        else:
            self._unpacked[node] = None


def common_blocks(ours: Sequence[bytes], theirs: Sequence[bytes], limit: int, offset: int = 0) -> int:
    """Return how many leading hashes of `ours` agree with those of `theirs` after `offset`, at most `limit`.

    Most runs agree to their end, so this is looked at first.
    """
    low, high = 0, min(len(ours), limit)
    if high and ours[high - 1] == theirs[offset + high - 1]:
        return high
    high -= high > 0
    while low < high:
        middle = (low + high + 1) // 2
        if ours[middle - 1] == theirs[offset + middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
