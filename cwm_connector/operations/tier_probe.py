"""Measures how fast each durable tier is before a request depends on it, with a few chunks that are there anyway.

A tier is measured at the start, else within a minute after the first freeze that leaves chunks in it, and again when
nothing was read from it for long. Loads and thaws measure it as well. Control thread; the workers read beside their
other jobs.
"""

from collections.abc import Collection
from typing import Final, NoReturn

from cwm_connector.catalog.base import Catalog, ChunkRow, WindowQuery
from cwm_connector.control.async_helpers import run_periodically
from cwm_connector.core.errors import CWMError
from cwm_connector.core.identity import Passport
from cwm_connector.core.types import TierName
from cwm_connector.operations.context import EngineContext

EVERY_S: Final = 60.0
CHUNKS: Final = 4
"""Chunks that a measurement reads: as many as a tier reads at the same time."""
_WINDOWS: Final = 20
"""The newest windows, among which chunks are looked for."""


class TierProbe:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext) -> None:
        self._engine = engine

    async def run(self) -> NoReturn:
        """Measure what is due, again and again until cancelled."""
        await run_periodically(self.measure, EVERY_S, "measuring the tiers", first_s=0)

    async def measure(self) -> None:
        """Measure each durable tier whose speed is unknown or outdated and that has chunks of this engine's model."""
        speed, passport = self._engine.scheduler.read_speed, self._engine.passport
        due = [tier for tier in self._engine.durable_tiers if not speed.knows(tier) or speed.is_outdated(tier)]
        if not due:
            return
        samples = await self._engine.catalog.run(lambda catalog: _samples(catalog, passport, due))
        for tier, rows in samples.items():
            result = await self._engine.verify([row.key for row in rows], tier, together=True)
            if all(outcome.failure is None for outcome in result.outcomes.values()):
                speed.measured({tier: sum(row.tokens for row in rows)}, result.seconds)


def _samples(catalog: Catalog, passport: Passport, tiers: Collection[TierName]) -> dict[TierName, list[ChunkRow]]:
    """Return some chunks in each of the tiers that has any."""
    filled = catalog.totals().tiers
    found: dict[TierName, list[ChunkRow]] = {tier: [] for tier in tiers if tier in filled and filled[tier].chunks}
    if not found:
        return found
    for window in catalog.list_windows(WindowQuery(limit=_WINDOWS)).windows:
        if passport.first_difference(window.passport) is not None:
            continue
        try:
            rows = catalog.chunks_of(window.name)
        except CWMError:
            continue  # a damaged window is reported where somebody asks for it
        for tier, known in found.items():
            there = [row for row in rows if tier in row.tiers and row not in known]
            known += there[: CHUNKS - len(known)]
        if all(len(known) == CHUNKS for known in found.values()):
            break
    return {tier: rows for tier, rows in found.items() if rows}
