"""How the threads of one process take turns at the interpreter's lock.

vLLM's engine thread runs Python in the same process as CWM's threads. A thread that comes back from a copy, a checksum
or a read needs the lock for some microseconds. By Python's default it waits for up to 5 ms, in which a PCIe 5 bus moves
256 MiB. Nor may one of CWM's threads keep the lock from the engine for that long.
"""

import sys
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0002
"""A thread that waits for the lock is given it after so long."""


def shorten_turns() -> None:
    """Let no thread of this process keep the lock for longer than `SWITCH_INTERVAL_S` while others wait for it."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
