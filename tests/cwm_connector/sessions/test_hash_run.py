"""sessions/hash_run.py: hashes read like a list, whether they are packed or lie in a request's list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.sessions.hash_run import ChainHashes, HashRun

HASHES = [b"a", b"bcd", b"", b"ef", b"g", b"hij", b"k"]


@pytest.fixture(autouse=True)
def every_list_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HashRun, "part_length", 2)


def run_of(hashes: list[bytes]) -> HashRun:
    return HashRun.of_list(hashes, 0, len(hashes))


@given(st.integers(0, 8), st.integers(0, 8), st.lists(st.integers(1, 3), max_size=4))
def test_a_run_reads_like_its_hashes_however_much_of_it_is_packed(start: int, end: int, packs: list[int]) -> None:
    run = run_of(HASHES)
    for limit in packs:
        run.pack(limit)
    assert list(run) == HASHES and [run[at] for at in range(-7, 7)] == HASHES * 2
    assert run[start:end] == tuple(HASHES[start:end])
    part = run.part(start, end)
    assert list(part) == HASHES[start:end]
    part.append(run)
    assert list(part) == HASHES[start:end] + HASHES
    part.pack(20)
    assert list(part) == HASHES[start:end] + HASHES and part.is_packed


def test_a_copy_does_not_change_when_the_run_goes_on() -> None:
    run = run_of(HASHES[:2])
    before = run.copy()
    run.append(run_of(HASHES[2:]))
    assert (list(before), list(run)) == (HASHES[:2], HASHES)


def test_a_run_that_is_cut_and_joined_again_takes_no_more_memory() -> None:
    run = run_of(HASHES)
    run.pack(len(HASHES))
    for _ in range(20):
        first, last = run.part(0, 3), run.part(3, 7)
        first.append(last)
        run = first
    fresh = run_of(HASHES)
    fresh.pack(len(HASHES))
    assert list(run) == HASHES and run.size_bytes <= fresh.size_bytes + 200


def test_a_chain_over_several_runs_reads_like_a_list() -> None:
    chain = ChainHashes([run_of([b"a", b"b"]), run_of([b"c"]), run_of([b"d", b"e"])])
    assert list(chain) == [b"a", b"b", b"c", b"d", b"e"]
    assert (chain[-1], chain[1:4], chain[2:9], len(chain)) == (b"e", (b"b", b"c", b"d"), (b"c", b"d", b"e"), 5)
