"""Two answers are equal to the last bit or they are not."""

from collections.abc import Sequence

from tests.certify.compare import difference
from tests.support.api import Completion


def answer(tokens: Sequence[int], logprobs: Sequence[float]) -> Completion:
    tops = tuple({f"token_id:{token}": logprob} for token, logprob in zip(tokens, logprobs, strict=True))
    return Completion(10, 0, tuple(tokens), tops, "", 0, 0)


def test_equal_answers_have_no_difference() -> None:
    found = difference(answer([1, 2], [-0.5, -1]), answer([1, 2], [-0.5, -1]))
    assert found.none and (found.tokens, found.of, found.logprob) == (2, 2, 0)


def test_the_smallest_distance_of_a_logprob_is_a_difference() -> None:
    found = difference(answer([1, 2], [-0.5, -1]), answer([1, 2], [-0.5, -1 - 2**-20]))
    assert not found.none and (found.tokens, found.logprob) == (2, 2**-20)


def test_another_or_a_missing_token_is_a_difference_and_what_follows_is_not_compared() -> None:
    found = difference(answer([1, 2, 3], [-0.5, -1, -7]), answer([1, 4, 3], [-0.5, -1, -9]))
    assert not found.none and (found.tokens, found.of, found.logprob) == (1, 3, float("inf"))
    assert not difference(answer([1, 2], [-0.5, -1]), answer([1], [-0.5])).none
