"""Measure how fast the engine computes prompts. A thaw compares its reading time with this speed.

The engine thread writes and any thread reads. Nothing here blocks. The time of a step begins when the step is planned,
or when the previous step ends if vLLM plans ahead. It ends when the output arrives.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

PREFILL_TOKENS: Final = 128
"""Steps with fewer tokens are mostly answers, whose speed says nothing about prompts. They are not measured."""
_STEPS: Final = 32
"""The last measured steps that count."""
_AHEAD: Final = 4
"""Steps that vLLM may have under way. If there are more, an output was not reported, and measuring starts again."""


class PrefillSpeed:
    """The speed of the last steps that computed mostly prompts."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._under_way: deque[tuple[int, float]] = deque()
        self._last_end = 0.0
        self._measured: deque[tuple[int, float]] = deque(maxlen=_STEPS)

    def step_planned(self, tokens: int) -> None:
        """Record the start of a step that computes `tokens` tokens. A step without tokens has no output."""
        if tokens:
            self._under_way.append((tokens, self._clock()))
        if len(self._under_way) > _AHEAD:
            self._under_way.clear()

    def step_done(self) -> None:
        """Record that the output of the oldest step under way has arrived."""
        now = self._clock()
        if self._under_way:
            tokens, planned = self._under_way.popleft()
            if tokens >= PREFILL_TOKENS:
                self._measured.append((tokens, now - max(planned, self._last_end)))
        self._last_end = now

    def seconds_for(self, tokens: int) -> float | None:
        """Return how long it takes to compute so many tokens, or None before the first prompt."""
        measured = tuple(self._measured)
        known = sum(each for each, _ in measured)
        return tokens * sum(seconds for _, seconds in measured) / known if known else None
