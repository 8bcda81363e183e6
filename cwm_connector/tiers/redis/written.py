"""Which start of the server each write went to, until it is known to be on the server's disk.

A sync asks the server of now. If that one has started since a write, it says nothing of it: the write may have been in
a file that was never synced, or in no file at all.
"""

import threading


class Written:
    """Counts the finished writes of all threads; each caller of `sync` hears once of those that were lost before it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._last: dict[bytes, int] = {}
        """The number of the last write to each start of the server that is not known to be on its disk."""
        self._heard = threading.local()

    def note(self, run_id: bytes) -> None:
        """One write is finished there."""
        with self._lock:
            self._count += 1
            self._last[run_id] = self._count

    def count(self) -> int:
        with self._lock:
            return self._count

    def settle(self, run_id: bytes, count: int) -> bool:
        """All writes to that start, up to that count, are on its disk. False if a write up to that count may be lost,
        and this thread was not told yet."""
        heard: int = getattr(self._heard, "count", 0)
        self._heard.count = count
        with self._lock:
            if self._last.get(run_id, count + 1) <= count:
                del self._last[run_id]
            return not any(run != run_id and last > heard for run, last in self._last.items())
