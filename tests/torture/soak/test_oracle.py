"""oracle.py: what passes for noise and what does not."""

import pytest

from tests.support.api import Completion
from tests.torture.soak.conversations import Turn
from tests.torture.soak.oracle import LEAST_FLOOR, SAFETY, Oracle, noise_between

TURN = Turn("turn", [1, 2, 3], None, 5, 3)


def answer(*choices: dict[int, float]) -> Completion:
    """An answer whose tokens are the first choice of each position."""
    tops = tuple({f"token_id:{token}": logprob for token, logprob in each.items()} for each in choices)
    return Completion(5, 0, tuple(next(iter(each)) for each in choices), tops, "", 0.1, 0.2)


RIGHT = answer({7: -0.1, 8: -3.0}, {9: -0.6931, 4: -0.6932}, {5: -0.2, 6: -2.0})


@pytest.fixture
def oracle() -> Oracle:
    made = Oracle()
    made._answers["turn"] = RIGHT
    return made


def test_the_same_answer_and_one_within_the_floor_pass(oracle: Oracle) -> None:
    assert oracle.difference(TURN, RIGHT) is None
    near = answer({7: -0.1 - LEAST_FLOOR / 2, 8: -3.0}, {9: -0.6931, 4: -0.6932}, {5: -0.2, 6: -2.0})
    assert oracle.difference(TURN, near) is None


def test_another_token_passes_only_where_the_right_one_hardly_leads(oracle: Oracle) -> None:
    assert oracle.difference(TURN, answer({7: -0.1}, {4: -0.6931, 9: -0.6932}, {1: -0.5})) is None
    wrong = oracle.difference(TURN, answer({7: -0.1}, {9: -0.6931, 4: -0.6932}, {6: -0.2, 5: -2.0}))
    assert wrong is not None and "token 6 at 2 and not 5" in wrong


def test_an_equal_token_with_another_logprob_is_a_difference(oracle: Oracle) -> None:
    wrong = oracle.difference(TURN, answer({7: -0.15}, {9: -0.6931, 4: -0.6932}, {5: -0.2}))
    assert wrong is not None and "another logprob at 0" in wrong


def test_a_short_answer_is_a_difference_unless_it_was_cut(oracle: Oracle) -> None:
    short = answer({7: -0.1, 8: -3.0})
    assert oracle.difference(TURN, short, is_cut=True) is None
    wrong = oracle.difference(TURN, short)
    assert wrong is not None and "1 of 3 tokens" in wrong


def test_the_floor_follows_the_noise_that_was_measured(oracle: Oracle) -> None:
    assert oracle.floor == LEAST_FLOOR
    again = answer({7: -0.11, 8: -3.0}, {4: -0.6931, 9: -0.6932}, {1: -9.0})
    oracle.noise = noise_between(RIGHT, again)
    assert oracle.noise == pytest.approx(0.01)
    assert oracle.floor == pytest.approx(SAFETY * 0.01)


def test_what_is_not_a_number_is_a_difference(oracle: Oracle) -> None:
    assert oracle.difference(TURN, answer({7: float("nan"), 8: -3.0}, {9: -0.6931}, {5: -0.2})) is not None
