"""step/jobs.py: a long load is a few objects, and reads like one part for each chunk."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import ChunkKey
from cwm_connector.step.jobs import ChunkBlocks, ChunkRun

SIZE = 4
CHUNKS = tuple(ChunkSpec(ChunkKey(bytes([at]) * 32), at * SIZE, 2 if at == 5 else SIZE) for at in range(6))
"""The last one is short."""


def parts(from_block: int, to_block: int) -> list[ChunkBlocks]:
    """Return the parts one by one. Block n of the request is block 100 + n of the cache."""
    found = []
    for chunk in CHUNKS:
        blocks = [at for at in range(chunk.first_block, chunk.end_block) if from_block <= at < to_block]
        if blocks:
            found.append(ChunkBlocks(chunk, tuple(100 + at for at in blocks), blocks[0] - chunk.first_block))
    return found


@given(st.integers(0, 21), st.integers(1, 22))
def test_a_run_reads_like_its_parts_also_in_the_worker(from_block: int, length: int) -> None:
    to_block = min(from_block + length, CHUNKS[-1].end_block)
    run = ChunkRun(
        CHUNKS[from_block // SIZE : -(-to_block // SIZE)], from_block, list(range(100 + from_block, 100 + to_block))
    )
    expected = parts(from_block, to_block)
    for each in (run, pickle.loads(pickle.dumps(run))):
        assert list(each) == expected and each[1:] == expected[1:] and len(each) == len(expected)
        assert each.block_counts() == [len(part.block_ids) for part in expected]


def test_a_long_load_is_pickled_in_a_few_bytes_for_each_block() -> None:
    chunks = [ChunkSpec(ChunkKey(number.to_bytes(32, "big")), 16 * number, 16) for number in range(512)]
    assert len(pickle.dumps(ChunkRun(chunks, 0, list(range(8192))))) < 8192 * 4 + 512 * 40
