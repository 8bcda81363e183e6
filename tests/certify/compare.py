"""Two answers to equal requests, side by side."""

from dataclasses import dataclass

from tests.support.api import Completion


@dataclass(frozen=True, slots=True)
class Difference:
    """`tokens`: how many leading tokens are equal. `logprob`: how far apart two logprobs of one token are, at most.

    Beyond the first token that differs the two answers have different contexts, and nothing is compared.
    """

    tokens: int
    of: int
    logprob: float

    @property
    def none(self) -> bool:
        return self.tokens == self.of and self.logprob == 0

    def __str__(self) -> str:
        return f"{self.tokens} of {self.of} tokens equal, logprobs up to {self.logprob:.6f} apart"


def difference(one: Completion, other: Completion) -> Difference:
    """Both answers have top logprobs. A token that only one of them lists counts as far apart as can be."""
    equal = 0
    for ours, theirs in zip(one.token_ids, other.token_ids, strict=False):
        if ours != theirs:
            break
        equal += 1
    compared = zip(one.top_logprobs[: equal + 1], other.top_logprobs[: equal + 1], strict=False)
    apart = [_apart(ours.get(token), theirs.get(token)) for ours, theirs in compared for token in {**ours, **theirs}]
    return Difference(equal, max(len(one.token_ids), len(other.token_ids)), max(apart, default=0.0))


def _apart(one: float | None, other: float | None) -> float:
    return float("inf") if one is None or other is None else abs(one - other)
