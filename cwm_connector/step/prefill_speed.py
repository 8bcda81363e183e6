"""How fast the engine computes prompts, as measured: what a thaw's reading time is compared with.

Engine thread writes, any thread reads. A step's time runs from its planning, or from the end of the step before it
where vLLM plans ahead, to the arrival of its output.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

PREFILL_TOKENS: Final = 128
"""Steps of fewer tokens are mostly answers, whose pace says nothing about prompts."""
_STEPS: Final = 32
_AHEAD: Final = 4
"""Steps that vLLM may have under way; with more, some output was never told, and measuring begins anew."""


class PrefillSpeed:
    """Over the last steps that were mostly prompt."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._under_way: deque[tuple[int, float]] = deque()
        self._last_end = 0.0
        self._measured: deque[tuple[int, float]] = deque(maxlen=_STEPS)

    def step_planned(self, tokens: int) -> None:
        """`tokens`: all that the step computes. A step without any has no output to wait for."""
        if tokens:
            self._under_way.append((tokens, self._clock()))
        if len(self._under_way) > _AHEAD:
            self._under_way.clear()

    def step_done(self) -> None:
        now = self._clock()
        if self._under_way:
            tokens, planned = self._under_way.popleft()
            if tokens >= PREFILL_TOKENS:
                self._measured.append((tokens, now - max(planned, self._last_end)))
        self._last_end = now

    def seconds_for(self, tokens: int) -> float | None:
        """How long computing so many tokens takes; None before the first prompt."""
        measured = tuple(self._measured)
        known = sum(each for each, _ in measured)
        return tokens * sum(seconds for _, seconds in measured) / known if known else None
