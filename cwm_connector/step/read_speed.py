"""Measure how fast tokens come from each tier, from the loads and thaws that really were.

Any thread may write and read. Nothing here blocks. Of two measurements at the same instant one may be lost.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from cwm_connector.core.types import TierName
from cwm_connector.metrics import Metrics

OUTDATED_S: Final = 600.0
"""After this time a tier may have become faster, and a small load is worth a try."""
_WEIGHT: Final = 0.5
"""What the newest measurement counts. The older ones share the rest."""


class ReadSpeed:
    """A moving estimate for each tier. A tier without one counts as infinitely fast, so that it is tried."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._seconds_per_token: dict[TierName, float] = {}
        self._measured_at: dict[TierName, float] = {}

    def measured(self, tokens: Mapping[TierName, int], seconds: float) -> None:
        """Take in that so many tokens came from each tier in `seconds` together.

        What the faster tiers usually take is subtracted, and the slowest tier took the rest.
        """
        tiers = sorted((tier for tier, count in tokens.items() if count), key=list(TierName).index)
        if not tiers:
            return
        slowest = tiers[-1]
        rest = seconds - sum(tokens[tier] * self._seconds_per_token.get(tier, 0.0) for tier in tiers[:-1])
        if rest <= 0:
            return
        newest = rest / tokens[slowest]
        before = self._seconds_per_token.get(slowest, newest)
        estimate = _WEIGHT * newest + (1 - _WEIGHT) * before
        self._seconds_per_token[slowest] = estimate
        self._measured_at[slowest] = self._clock()
        self._metrics.read_rate.labels(slowest.value).set(1 / estimate)

    def seconds_for(self, tier: TierName, tokens: int) -> float:
        """Return how long it takes to read so many tokens from the tier, 0 if it was never measured."""
        return tokens * self._seconds_per_token.get(tier, 0.0)

    def knows(self, tier: TierName) -> bool:
        """Return whether the tier was measured."""
        return tier in self._seconds_per_token

    def is_outdated(self, tier: TierName) -> bool:
        """Return whether the last measurement of the tier is old."""
        return self._clock() - self._measured_at.get(tier, self._clock()) >= OUTDATED_S
