"""Which run of the server each write went to, until the write is known to be on the server's disk.

A sync asks the server that runs now. If it has restarted since a write, its answer says nothing of that write, which
may have been in a file that was never synced, or in no file at all.

Any thread; nothing blocks.
"""

import threading


class Written:
    """Counts the finished writes of all threads. Each thread that syncs learns once of those that were lost before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._last: dict[bytes, int] = {}
        """The number of the last write to each run of the server that is not known to be on its disk."""
        self._reported = threading.local()

    def note(self, run_id: bytes) -> None:
        """Record that one write to that run of the server is finished."""
        with self._lock:
            self._count += 1
            self._last[run_id] = self._count

    def count(self) -> int:
        """Return the number of writes so far."""
        with self._lock:
            return self._count

    def confirm(self, run_id: bytes, count: int) -> bool:
        """Record that all writes to that run of the server, up to that count, are on its disk.

        Return False if an earlier write up to that count may be lost and this thread has not learned of it yet.
        """
        reported: int = getattr(self._reported, "count", 0)
        self._reported.count = count
        with self._lock:
            if self._last.get(run_id, count + 1) <= count:
                del self._last[run_id]
            return not any(run != run_id and last > reported for run, last in self._last.items())
