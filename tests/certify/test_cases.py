"""The windows of a run vary in everything that may matter."""

import pytest

from tests.certify.cases import BRANCHES, LENGTHS, RESTS, UNIT, Moment, cases

ANSWER, CUE = 12, 8


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_hundred_windows_have_every_length_branch_and_moment(seed: int) -> None:
    found = cases(104, seed)
    assert len({each.name for each in found}) == 104
    assert {each.units for each in found} == set(LENGTHS) and {each.rest for each in found} == set(RESTS)
    assert {each.branch for each in found} == set(BRANCHES) and found[0].branch is None
    assert {each.moment for each in found} == set(Moment)
    assert 10 < sum(each.load for each in found) < 50


def test_a_seed_decides_everything() -> None:
    assert cases(30, 1) == cases(30, 1)
    assert cases(30, 1) != cases(30, 2)


@pytest.mark.parametrize("block_tokens", [16, UNIT])
@pytest.mark.parametrize("rest", RESTS)
def test_a_prefix_hit_and_the_session_itself_find_the_same_blocks(rest: int, block_tokens: int) -> None:
    """Otherwise the requests would compute different tokens, and their logprobs would differ by that alone."""
    computed = 5 * UNIT + rest + ANSWER - 1
    prompt = computed + 1 + CUE
    assert computed // block_tokens == (prompt - 1) // block_tokens
