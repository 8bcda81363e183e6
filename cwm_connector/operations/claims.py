"""Claims: the marks by which engines that share chunks say whose write keeps the bytes.

core/types.py says why they are needed. Each freeze makes one claim. It lives on in the catalog's chunk row if that
freeze's commit made the row. Any other claim is ended by its freeze, or by a collection once no freeze can use it.
"""

from dataclasses import dataclass
from typing import Final

from cwm_connector.core.types import NO_CLAIM, Claim, Micros, now_micros
from cwm_connector.protocol.wire import MAX_CALL_S

ABANDONED_AFTER_S: Final = 24 * MAX_CALL_S
"""No freeze takes this long, even if the clocks of two machines differ."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Makes and judges claims. `engine_id` is the id of this engine's home, `since` the start of this process."""

    engine_id: str
    shared: bool
    since: Micros

    def new(self) -> Claim:
        """Return a claim for one freeze. An engine that shares nothing needs none."""
        return Claim(f"{self.engine_id}:{now_micros()}") if self.shared else NO_CLAIM

    def is_abandoned(self, claim: Claim, now: Micros) -> bool:
        """Return True if no freeze can use the claim any more.

        That is so for this engine's claims from before its start and for any claim that is too old. The caller leaves
        out claims that are recorded in chunk rows. Those are never abandoned.
        """
        engine, _, made = claim.partition(":")
        if not made.isdecimal():
            return False  # not written by us
        if engine == self.engine_id:
            return int(made) < self.since
        return int(made) < now - ABANDONED_AFTER_S * 1_000_000
