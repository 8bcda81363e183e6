"""A clock that never jumps. Any thread; nothing here blocks.

Somebody may set the machine's clock while an engine runs. Sessions would then look idle for days, a window frozen later
would look older than one before, and an idle session would not be frozen for as long as the clock went back. So the
time goes on from the start of the process at the pace of the clock since boot, which nobody can set and which goes on
while the machine is suspended.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)
TOLERATED_NS: Final = 60 * 10**9
"""Clocks are corrected by less than this all the time."""


class SteadyClock:
    """The machine's time at the start, and the time since then."""

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        since_boot_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall_ns = wall_ns
        self._since_boot_ns = since_boot_ns
        self._offset_ns = wall_ns() - since_boot_ns()
        self._noted_ns = 0

    def now_ns(self) -> int:
        """Return the time in nanoseconds since 1970. Say once for each jump that the machine's clock was set."""
        now = self._offset_ns + self._since_boot_ns()
        ahead = self._wall_ns() - now
        if abs(ahead - self._noted_ns) > TOLERATED_NS:
            self._noted_ns = ahead
            logger.warning(
                "the machine's clock is now %+.0f s off the time of this process; nothing is lost, and times are the "
                "clock's again after a restart",
                ahead / 1e9,
            )
        return now


CLOCK: Final = SteadyClock()
"""The clock of this process."""
