"""The tokens and block hashes of one session's heads, with a part that several heads share stored once.

Engine thread only. Nothing here blocks.

A node is a run of full blocks. Its children continue it in different ways. A head ends at the end of a node:

    (root) -- system, tools, 6,000 blocks -- turn 7 of the conversation      a head ends here
                                          \\- a suggestion after turn 6       another one ends here

vLLM's hash of a block covers all blocks before it. Two chains therefore have a block in common if the hashes at its
position are equal, and a binary search finds the last common block.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cwm_connector.sessions.hash_run import HashRun
from cwm_connector.sessions.token_run import TokenRun

NODE_BYTES: Final = 700
"""Python's own overhead for a node: the objects, and the entry in its parent's table."""


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
    end: int = field(init=False)
    """The position after its last block."""

    def __post_init__(self) -> None:
        self.end = self.first + len(self.hashes)

    def set_run(self, first: int, hashes: HashRun, tokens: TokenRun) -> None:
        """Give the node other blocks."""
        self.first, self.hashes, self.tokens = first, hashes, tokens
        self.end = first + len(hashes)

    def path(self) -> "list[Node]":
        """Return the nodes from the root to this one, without the root."""
        nodes: list[Node] = []
        node: Node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class Fork(NamedTuple):
    """Where a chain and another one of the tree part."""

    blocks: int
    """How many leading blocks they have in common."""
    node: "Node | None"
    """The node with the next block of the other chain. None if it has no further full block."""


@dataclass(frozen=True, slots=True)
class Match:
    """How far a chain is in the tree already."""

    path: frozenset[Node]
    """The nodes that the chain goes through, with the root."""
    node: Node
    """The last one of them. The chain may leave it before its end."""
    blocks: int
    _forks: dict[Node, Fork] = field(default_factory=dict, repr=False)
    """Forks that are known already. Asking about every chain visits each node once."""

    def fork(self, node: Node) -> Fork:
        """Return where the chain and the one that ends with `node` part."""
        path, forks = self.path, self._forks
        if node in path:
            return Fork(min(node.end, self.blocks), node if node.end > self.blocks else None)
        if (known := forks.get(node)) is not None:
            return known
        passed = [node]
        while (parent := node.parent) not in path:
            assert parent is not None
            if (known := forks.get(parent)) is not None:
                break
            passed.append(parent)
            node = parent
        if known is None:
            known = Fork(self.blocks, parent) if parent.end > self.blocks else Fork(parent.end, node)
        for each in passed:
            forks[each] = known
        return known


class BlockTree:
    """The chains of one session."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.root = Node(None, 0, HashRun(), TokenRun())
        self.size_bytes = 0
        self._unpacked: dict[Node, None] = {}

    def match(self, hashes: Sequence[bytes], blocks: int) -> Match:
        """Find the part of the chain of the first `blocks` hashes that the tree has already."""
        node, at = self.root, 0
        path = [node]
        child = node.children.get(hashes[0]) if blocks else None
        while child is not None:
            node = child
            path.append(node)
            end = node.end
            child = node.children.get(hashes[end]) if end < blocks else None
            if child is not None:
                at = end  # a block that follows says that all before it agree
            else:
                at += common_blocks(node.hashes, hashes, blocks - at, at)
        return Match(frozenset(path), node, at)

    def attach(self, match: Match, hashes: HashRun, tokens: TokenRun) -> Node:
        """Add a head to the chain that `match` found, continued by `hashes` and the ids of their tokens.

        Return the node at which the head ends.
        """
        node = match.node if match.blocks == match.node.end else self._split(match.node, match.blocks)
        if hashes:
            child = Node(node, match.blocks, hashes, tokens)
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
        node.hashes.append(child.hashes)
        node.tokens.append(child.tokens)
        child.set_run(node.first, node.hashes, node.tokens)
        child.parent = node.parent
        node.parent.children[child.hashes[0]] = child
        self._unpacked.pop(node, None)
        self.size_bytes -= node.counted_bytes
        self._count(child)

    def block_ids(self, node: Node, block: int) -> "array[int]":
        """Return the ids of the tokens of the block at position `block`, which the node has."""
        start = (block - node.first) * self.block_tokens
        return node.tokens.ids(start, start + self.block_tokens)

    def runs(self, node: Node, end: int) -> list[TokenRun]:
        """Return the first `end` ids of the chain that ends with `node`, without packing any. A chain may end before.

        They are the tree's own. `TokenRun.of_runs` makes a run of them that may be handed to another thread.
        """
        runs = []
        for each in node.path():
            start, stop = each.first * self.block_tokens, each.end * self.block_tokens
            if start >= end:
                break
            runs.append(each.tokens if stop <= end else each.tokens.part(0, end - start))
        return runs

    @property
    def is_packed(self) -> bool:
        """Return whether nothing lies in a request's lists any more."""
        return not self._unpacked

    def pack(self, limit: int) -> None:
        """Pack at most `limit` tokens, and the hashes of so many, that lie in a request's lists."""
        node = next(iter(self._unpacked), None)
        if node is not None:
            node.tokens.pack(limit)
            node.hashes.pack(limit // self.block_tokens)
            self._count(node)

    def _split(self, node: Node, at: int) -> Node:
        """Cut the node before the block at position `at`. Return the new node of the blocks before it."""
        assert node.parent is not None
        count = at - node.first
        tokens = count * self.block_tokens
        before = Node(node.parent, node.first, node.hashes.part(0, count), node.tokens.part(0, tokens))
        node.parent.children[before.hashes[0]] = before
        node.set_run(at, node.hashes.part(count, len(node.hashes)), node.tokens.part(tokens, len(node.tokens)))
        node.parent = before
        before.children[node.hashes[0]] = node
        self._count(before)
        self._count(node)
        return before

    def _count(self, node: Node) -> None:
        size = NODE_BYTES + node.hashes.size_bytes + node.tokens.size_bytes
        self.size_bytes += size - node.counted_bytes
        node.counted_bytes = size
        if node.tokens.is_packed and node.hashes.is_packed:
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
