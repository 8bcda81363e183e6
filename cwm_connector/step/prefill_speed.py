"""Measure how fast the engine computes prompts. A thaw compares its reading time with this speed.

A token far into a prompt takes longer than one at its beginning, because it attends to all tokens before it. So the
speed is kept by position, in ranges that double in length: 0–2k, 2k–4k, 4k–8k tokens and so on.

The engine thread writes and any thread reads. Nothing here blocks. The time of a step begins when the step is planned,
or when the previous step ends if vLLM plans ahead. It ends when the output arrives.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

PREFILL_TOKENS: Final = 128
"""Steps with fewer tokens are mostly answers, whose speed says nothing about prompts. They are not measured."""
FIRST_RANGE: Final = 2048
"""The tokens of the first range of positions."""
_RANGES: Final = 12
"""The last range begins at two million tokens and has no end."""
_STEPS: Final = 16
"""The last measured steps of a range that count."""
_AHEAD: Final = 4
"""Steps that vLLM may have under way. If there are more, an output was not reported, and measuring starts again."""


class PrefillCosts:
    """The seconds that a token takes in each range of positions, at one instant. Immutable."""

    def __init__(self, seconds_per_token: Sequence[float]) -> None:
        self._seconds_per_token = tuple(seconds_per_token)

    def seconds(self, tokens: int, first: int = 0) -> float:
        """Return how long it takes to compute `tokens` tokens of a prompt, from position `first` on."""
        position, end, total = first, first + tokens, 0.0
        while position < end:
            number = _range_of(position)
            upto = end if number == _RANGES - 1 else min(end, FIRST_RANGE << number)
            total += (upto - position) * self._seconds_per_token[number]
            position = upto
        return total


class PrefillSpeed:
    """The speed of the last steps that computed mostly prompts."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._under_way: deque[tuple[int, int, float]] = deque()
        self._last_end = 0.0
        self._measured = tuple(deque[tuple[int, float]](maxlen=_STEPS) for _ in range(_RANGES))
        self._costs: PrefillCosts | None = None

    def step_planned(self, tokens: int, position: int = 0) -> None:
        """Record the start of a step that computes `tokens` tokens, whose middle is at `position` of their prompt.

        A step without tokens has no output.
        """
        if tokens:
            self._under_way.append((tokens, position, self._clock()))
        if len(self._under_way) > _AHEAD:
            self._under_way.clear()

    def step_done(self) -> None:
        """Record that the output of the oldest step under way has arrived."""
        now = self._clock()
        if self._under_way:
            tokens, position, planned = self._under_way.popleft()
            if tokens >= PREFILL_TOKENS:
                self._take_in(tokens, position, now - max(planned, self._last_end))
        self._last_end = now

    def costs(self) -> PrefillCosts | None:
        """Return the costs of computing as they are now, or None before the first prompt."""
        return self._costs

    def seconds_for(self, tokens: int, first: int = 0) -> float | None:
        """Return how long it takes to compute so many tokens from position `first` on. None before the first prompt."""
        return None if self._costs is None else self._costs.seconds(tokens, first)

    def _take_in(self, tokens: int, position: int, seconds: float) -> None:
        self._measured[_range_of(position)].append((tokens, seconds))
        known = {number: _rate(steps) for number, steps in enumerate(self._measured) if steps}
        self._costs = PrefillCosts([known[_nearest(known, number)] for number in range(_RANGES)])


def _range_of(position: int) -> int:
    return min((position // FIRST_RANGE).bit_length(), _RANGES - 1)


def _nearest(known: Iterable[int], number: int) -> int:
    """Return the known range that is nearest to `number`. Of two, the earlier one promises less."""
    return min(known, key=lambda other: (abs(other - number), other))


def _rate(steps: Sequence[tuple[int, float]]) -> float:
    return sum(seconds for _, seconds in steps) / sum(tokens for tokens, _ in steps)
