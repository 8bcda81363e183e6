"""What every policy promises, and what makes each the one it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.settings import PolicyName
from cwm_connector.tiers.policies import TierPolicy, new_policy

EVERY = pytest.mark.parametrize("name", list(PolicyName))


def fed(name: PolicyName, uses: str) -> TierPolicy[str]:
    policy: TierPolicy[str] = new_policy(name)
    for chunk in uses:
        policy.used(chunk)
    return policy


@EVERY
def test_each_chunk_is_offered_once_and_a_forgotten_one_never(name: PolicyName) -> None:
    policy = fed(name, "abcabca")
    policy.forget("b")
    policy.forget("unknown")
    assert sorted(policy.coldest()) == ["a", "c"]
    assert len(policy) == 2 and "a" in policy and "b" not in policy


@EVERY
def test_of_chunks_used_once_the_oldest_goes_first(name: PolicyName) -> None:
    assert list(fed(name, "abcd").coldest()) == ["a", "b", "c", "d"]


@EVERY
@given(uses=st.text("abcdef"), gone=st.sets(st.sampled_from("abcdef")))
def test_it_knows_exactly_what_was_used_and_not_forgotten(name: PolicyName, uses: str, gone: set[str]) -> None:
    policy = fed(name, uses)
    for chunk in gone:
        policy.forget(chunk)
    assert set(policy.coldest()) == set(uses) - gone
    assert len(policy) == len(set(uses) - gone)


def test_lru_keeps_what_was_used_last() -> None:
    assert list(fed(PolicyName.LRU, "abcab").coldest()) == ["c", "a", "b"]


def test_slru_lets_a_burst_of_new_chunks_pass_and_keeps_what_was_used_again() -> None:
    uses = "pqr" + "abab" + "stuvwxyz"
    assert list(fed(PolicyName.SLRU, uses).coldest())[-2:] == ["a", "b"]
    assert list(fed(PolicyName.LRU, uses).coldest())[3:5] == ["a", "b"]


def test_slru_s_protected_chunks_can_t_crowd_out_the_new_ones() -> None:
    policy = fed(PolicyName.SLRU, "aabbccddee")
    assert next(iter(policy.coldest())) == "a"  # the longest unused of them fell back
    policy.used("z")
    assert list(policy.coldest())[:2] == ["a", "z"]
