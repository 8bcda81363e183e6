"""The lock that gives a CWM_HOME to one engine at a time."""

import fcntl
import logging
import os
from pathlib import Path
from typing import Final

from cwm_connector.core.errors import Code, CWMError

logger = logging.getLogger(__name__)
_lock_fds: Final[set[int]] = set()
"""File descriptors of the locks that this process holds."""


def _close_inherited_locks() -> None:
    """Close the locks in a forked child, which would keep them after its parent was killed."""
    for descriptor in _lock_fds:
        os.close(descriptor)
    _lock_fds.clear()


os.register_at_fork(after_in_child=_close_inherited_locks)


class HomeLock:
    """A lock on `engine.lock`. The kernel releases it when the process ends, in whatever way."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises: `Code.STATE` if another engine has it, `Code.WRITE_FAILED` if its file can't be written.
        """
        path = self._home / "engine.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise CWMError(
                Code.WRITE_FAILED, f"{path} can't be opened ({problem.strerror}); check the folder that CWM_HOME names"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace")
            os.close(descriptor)
            raise CWMError(
                Code.STATE,
                f"another engine (process {holder or 'unknown'}) uses CWM_HOME {self._home}; stop it, or give this "
                "engine a CWM_HOME of its own",
                pid=int(holder) if holder.isdecimal() else None,
            ) from None
        except OSError as problem:
            os.close(descriptor)
            raise CWMError(
                Code.WRITE_FAILED, f"{path} can't be locked ({problem.strerror}); check the disk that CWM_HOME is on"
            ) from None
        _lock_fds.add(descriptor)
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock. Does nothing without one."""
        if self._descriptor is not None:
            _lock_fds.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
