"""cold_first.py: what nobody has asked for goes first, and what was asked for lately makes no room for it."""

import pytest

from cwm_connector.settings import PolicyName
from cwm_connector.tiers.policies import new_policy
from cwm_connector.tiers.policies.cold_first import HOT_S, ColdFirst

EVERY = pytest.mark.parametrize("name", list(PolicyName))


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def new(name: PolicyName) -> tuple[ColdFirst[str], Clock]:
    clock = Clock()
    return ColdFirst(new_policy(name), clock), clock


@EVERY
def test_chunks_that_nobody_asked_for_go_first_the_oldest_of_them_at_the_front(name: PolicyName) -> None:
    policy, _ = new(name)
    policy.used("a")
    for chunk in "xyx":
        policy.came(chunk)
    policy.used("b")
    assert list(policy.coldest()) == ["x", "y", "a", "b"] and list(policy.not_hot()) == ["x", "y"]
    assert len(policy) == 4 and "x" in policy and "a" in policy and "z" not in policy


@EVERY
def test_a_use_makes_a_chunk_hot_and_nothing_but_time_makes_it_cold_again(name: PolicyName) -> None:
    policy, clock = new(name)
    policy.came("x")
    policy.used("x")
    policy.came("x")
    policy.came("y")
    assert list(policy.coldest()) == ["y", "x"] and list(policy.not_hot()) == ["y"]
    clock.now += HOT_S - 1
    policy.used("b")
    clock.now += 1
    assert list(policy.not_hot()) == ["y", "x"]


@EVERY
def test_a_forgotten_chunk_is_in_no_order(name: PolicyName) -> None:
    policy, _ = new(name)
    policy.came("x")
    policy.used("a")
    for chunk in "xau":
        policy.forget(chunk)
    assert not list(policy.coldest()) and not list(policy.not_hot()) and len(policy) == 0
    policy.came("a")
    assert list(policy.not_hot()) == ["a"]
