"""What an engine without windows answers, how much its own answers differ, and whether an answer is one of its.

Sums depend on the batch that they are computed in, so two right answers differ in the last bits of their logprobs, and
where two tokens are about equally likely they may go on differently. The floor is measured in the same run: all prompts
of a sample are asked once more, side by side. `SAFETY` times the largest difference is the floor, because a sample's
largest difference is smaller than that of all answers.
"""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

from tests.support.api import Api, Completion
from tests.torture.soak.conversations import Conversations, Turn

LOGPROBS: Final = 2
SAFETY: Final = 4
LEAST_FLOOR: Final = 0.002
"""Of a logprob. Wrong keys and values change one by far more."""


class Oracle:
    """The answers of one engine to all turns."""

    def __init__(self) -> None:
        self._answers: dict[str, Completion] = {}
        self.noise = 0.0
        """The largest difference of a logprob between two answers of the engine itself."""

    @property
    def floor(self) -> float:
        """Return the difference up to which two logprobs count as equal."""
        return max(LEAST_FLOOR, SAFETY * self.noise)

    async def ask_all(self, api: Api, said: Conversations, sample: int) -> None:
        """Ask everything, one turn after the other, then a sample side by side. Nobody else may ask meanwhile.

        Each request has a salt of its own, so that nothing at all is found in a cache, and nothing is loaded.
        """
        for turn in said.turns():
            answer = await _asked_cold(api, turn)
            turn.answer = answer.token_ids
            self._answers[turn.name] = answer
        some = said.turns()[:sample]
        for turn, again in zip(some, await asyncio.gather(*(_asked_cold(api, turn) for turn in some)), strict=True):
            self.noise = max(self.noise, noise_between(self._answers[turn.name], again))

    def difference(self, turn: Turn, heard: Completion, *, is_cut: bool = False) -> str | None:
        """Return in words how an answer differs from the right one; None if it does not. `is_cut`: it may be short."""
        right = self._answers[turn.name]
        if len(heard.token_ids) < len(right.token_ids) and not is_cut:
            return f"{turn.name} got {len(heard.token_ids)} of {len(right.token_ids)} tokens"
        for at, (token, expected) in enumerate(zip(heard.token_ids, right.token_ids, strict=False)):
            if token != expected:
                gap = gap_of(right, at)
                if gap <= self.floor:
                    return None
                return f"{turn.name} got token {token} at {at} and not {expected}, which leads by {gap:.3g}"
            apart = abs(logprob_of(heard, at) - logprob_of(right, at))
            if not apart <= self.floor:  # not a number is neither
                return f"{turn.name} has another logprob at {at}: {apart:.3g} apart, the floor is {self.floor:.3g}"
        return None


def gap_of(answer: Completion, at: int) -> float:
    """Return by how much the first choice leads."""
    best, second = sorted(answer.top_logprobs[at].values(), reverse=True)[:2]
    return best - second


def logprob_of(answer: Completion, at: int) -> float:
    """Return the logprob of the token that was taken."""
    return answer.top_logprobs[at][f"token_id:{answer.token_ids[at]}"]


def noise_between(one: Completion, other: Completion) -> float:
    """Return the largest difference of a logprob, or of two choices' order, before the answers part."""
    largest = 0.0
    for at, (first, second) in enumerate(zip(one.token_ids, other.token_ids, strict=True)):
        if first != second:
            return max(largest, gap_of(one, at))
        largest = max(largest, abs(logprob_of(one, at) - logprob_of(other, at)))
    return largest


async def _asked_cold(api: Api, turn: Turn) -> Completion:
    salt = f"oracle-{secrets.token_hex(8)}"
    answer = await api.complete(_ids(turn), turn.max_tokens, cache_salt=salt, logprobs=LOGPROBS)
    if answer.cached_tokens:
        raise RuntimeError(f"{turn.name} was to be computed, and {answer.cached_tokens} tokens came from a cache")
    return answer


def _ids(turn: Turn) -> Sequence[int]:
    return turn.prompt
