"""sessions/block_tree.py: chains share what they have in common, and nothing is left when they go."""

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from cwm_connector.sessions.block_tree import BlockTree, Fork, Node
from cwm_connector.sessions.hash_run import ChainHashes, HashRun
from cwm_connector.sessions.token_run import TokenRun

BLOCK = 4


def hashes_of(chain: list[int]) -> list[bytes]:
    """Return hashes that differ in length, each for all blocks up to its own."""
    return [repr(chain[: at + 1]).encode() for at in range(len(chain))]


def run_of(hashes: list[bytes]) -> HashRun:
    return HashRun.of_list(hashes, 0, len(hashes))


def tokens_of(chain: list[int]) -> "array[int]":
    return array("i", [token for block in chain for token in range(block * BLOCK, block * BLOCK + BLOCK)])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), min_size=1, max_size=7)), max_size=12))
def test_every_chain_is_found_again_whatever_was_added_and_removed(steps: list[tuple[bool, list[int]]]) -> None:
    tree = BlockTree(BLOCK)
    heads: list[tuple[Node, list[int]]] = []
    for remove, chain in steps:
        if remove and heads:
            node, _ = heads.pop(len(chain) % len(heads))
            tree.detach(node)
        else:
            hashes = hashes_of(chain)
            match = tree.match(hashes, len(hashes))
            known = max((_common(chain, other) for _, other in heads), default=0)
            assert match.blocks == known
            heads.append(
                (tree.attach(match, run_of(hashes[known:]), TokenRun(tokens_of(chain)[known * BLOCK :])), chain)
            )
        for node, kept in heads:
            assert list(ChainHashes([each.hashes for each in node.path()])) == hashes_of(kept)
            assert TokenRun.of_runs(tree.runs(node, len(kept) * BLOCK)).packed() == tokens_of(kept)
            match = tree.match(hashes_of(kept), len(kept))
            forks = [match.fork(other) for other, _ in heads]
            assert [fork.blocks for fork in forks] == [_common(kept, chain) for _, chain in heads]
            assert [_next_block(tree, fork) for fork in forks] == [
                tokens_of(chain)[fork.blocks * BLOCK :][:BLOCK] for fork, (_, chain) in zip(forks, heads, strict=True)
            ]
    for node, _ in heads:
        tree.detach(node)
    assert (tree.size_bytes, tree.root.children) == (0, {})


def _next_block(tree: BlockTree, fork: Fork) -> "array[int]":
    return array("i") if fork.node is None else tree.block_ids(fork.node, fork.blocks)


def _common(one: list[int], other: list[int]) -> int:
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None) or (
        0 if one[:1] != other[:1] else min(len(one), len(other))
    )


def test_a_chain_is_one_node_again_when_its_branch_has_gone() -> None:
    tree = BlockTree(BLOCK)
    hashes, other = hashes_of([1, 2, 3, 4]), hashes_of([1, 2, 9])
    stem = tree.attach(tree.match(hashes, 4), run_of(hashes), TokenRun(tokens_of([1, 2, 3, 4])))
    before = tree.size_bytes
    branch = tree.attach(tree.match(other, 3), run_of(other[2:]), TokenRun(tokens_of([9])))
    assert len(stem.path()) == 2
    tree.detach(branch)
    assert len(stem.path()) == 1 and abs(tree.size_bytes - before) < 100
