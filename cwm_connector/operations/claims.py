"""The claims that this engine writes chunks with, and how to tell that nobody stands behind one any more.

Only a store that several engines share needs them (core/types.py says why). One claim is made for each freeze. It
outlives the freeze in the catalog's chunk row if that freeze's commit made the row. Any other is ended by its freeze,
or by a collection once its engine can't be in that freeze any more.
"""

from dataclasses import dataclass
from typing import Final

from cwm_connector.core.types import NO_CLAIM, Claim, Micros, now_micros
from cwm_connector.protocol.wire import MAX_CALL_S

ABANDONED_AFTER_S: Final = 24 * MAX_CALL_S
"""No freeze lasts so long, whatever the clocks of two machines say."""


@dataclass(frozen=True, slots=True)
class Claims:
    """`engine_id`: the store's id; `since`: when this process began."""

    engine_id: str
    shared: bool
    since: Micros

    def new(self) -> Claim:
        return Claim(f"{self.engine_id}:{now_micros()}") if self.shared else NO_CLAIM

    def is_abandoned(self, claim: Claim, now: Micros) -> bool:
        """True for a claim of this engine's earlier life, and for anybody's that is too old to be in use.

        The caller knows the claims that chunk rows stand for; those are never abandoned.
        """
        engine, _, made = claim.partition(":")
        if not made.isdecimal():
            return False  # not written by us
        if engine == self.engine_id:
            return int(made) < self.since
        return int(made) < now - ABANDONED_AFTER_S * 1_000_000
