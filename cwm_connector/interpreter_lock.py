"""How the threads of one process take turns at the interpreter's lock.

On a GPU, vLLM's engine thread runs Python in the same process as the transfer threads. A thread that comes back from a
copy, a checksum or a read needs the lock for some microseconds, and the engine thread keeps it for up to 5 ms, in which
a PCIe 5 bus moves 256 MiB. If the step computes nothing, because all requests wait for their loads, the engine thread
has no hurry, and short turns make loads and captures faster. With stand-ins for the bus and the checks, a load of 128
chunks took 95 ms in place of 118. If the step computes, every turn that the engine thread loses makes somebody's tokens
slower, so it keeps Python's turns.

The same holds for the catalog's thread, which takes the lock again for each row, while requests wait for its answer.

The engine thread and the model's thread, once a step. It takes less than a microsecond.
"""

import sys
from typing import Final

SHORT_S: Final = 0.0002
"""A thread that waits for the lock is given it after so long."""
_PYTHONS_S: Final = sys.getswitchinterval()


def take_turns(*, short: bool) -> None:
    """Let a thread that waits for the lock have it after `SHORT_S`, or after Python's own interval."""
    sys.setswitchinterval(SHORT_S if short else _PYTHONS_S)
