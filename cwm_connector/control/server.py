"""The control socket's server: who may bind it, who may speak on it, and the thread that it runs on.

The socket is private to the engine's user: a new folder gets mode 0700, the socket 0600, and every connection's peer
is checked against the kernel's word. `HomeLock` comes first: whoever holds it may replace a socket that a killed
engine left. What a client sends is `connection.py`'s, what becomes of a call `calls.py`'s.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any, Final

from cwm_connector.control.calls import CallHandler
from cwm_connector.control.connection import Connection, ConnectionLimits
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.wire import Welcome

logger = logging.getLogger(__name__)
_UCRED: Final = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""
_LIMITS: Final = ConnectionLimits()


class ControlServer:
    """Serves `operations` on a unix socket. Belongs to the event loop that `start` runs on and ends with it."""

    def __init__(
        self,
        socket_path: Path,
        operations: CallHandler,
        model: str,
        version: str = "",
        limits: ConnectionLimits = _LIMITS,
    ) -> None:
        self._path = socket_path
        self._operations = operations
        self._welcome = Welcome(0, version, os.getpid(), model)
        self._limits = limits
        self._open_connections = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Returns when clients can connect. The store's lock must be held.

        Raises: CWM-1003 if there can be no socket at the path; CWM-3001 if another process serves there.
        """
        listener = await asyncio.start_unix_server(self._accept, sock=_bind_private(self._path))
        self._keep(asyncio.create_task(self._until_cancelled(listener, self._path.lstat().st_ino)))
        await asyncio.sleep(0)  # a task that is cancelled before it began would leave the socket

    async def close(self) -> None:
        """Ends the connections, whose operations are cancelled, and removes the socket."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _until_cancelled(self, listener: asyncio.Server, inode: int) -> None:
        """Closes with its loop, too: that cancels every task."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            listener.close()
            with contextlib.suppress(OSError):
                if self._path.lstat().st_ino == inode:
                    self._path.unlink()

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._keep(task)
        connection = Connection(reader, writer, self._operations, self._welcome, self._limits)
        if not _may_speak(writer):
            return await connection.refuse(
                CWMError(Code.NOT_ALLOWED, "this engine belongs to another user; call as the user that runs it")
            )
        if self._open_connections >= self._limits.connections:
            return await connection.refuse(
                CWMError(Code.BUSY, f"{self._limits.connections} clients are connected; close one, or try again later")
            )
        self._open_connections += 1
        try:
            await connection.serve()
        finally:
            self._open_connections -= 1
        return await connection.settle()


def _may_speak(writer: asyncio.StreamWriter) -> bool:
    """True for a process of our own user, or of root."""
    peer = writer.get_extra_info("socket")
    _pid, uid, _gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (os.geteuid(), 0)


def _bind_private(path: Path) -> socket.socket:
    """A socket bound to `path`, mode 0600; one that nobody serves any more is replaced."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _warn_if_others_may_write(path.parent)
        _remove_stale(path)
        # Linux gives the file the mode of the unbound socket: private at once, with no umask for other threads to meet.
        os.fchmod(server.fileno(), 0o600)
        server.bind(str(path))
    except OSError as problem:
        server.close()
        reason = problem.strerror or problem
        raise CWMError(
            Code.ARGUMENT, f"CWM_SOCKET names {path}, where no socket can be made ({reason}); choose another path"
        ) from None
    except CWMError:
        server.close()
        raise
    return server


def _warn_if_others_may_write(folder: Path) -> None:
    """The folder is left as its owner made it: it may be one with other uses, such as /tmp."""
    mode = folder.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        logger.warning("other users may replace the socket in %s; `chmod 700` the folder", folder)


def _remove_stale(path: Path) -> None:
    """Raises: CWM-1003 for anything but a socket; CWM-3001 for one that is served; OSError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CWMError(Code.ARGUMENT, f"CWM_SOCKET names {path}, which is no socket; choose another path")
    # The lock is the store's; two stores may have been given one socket.
    if _is_served(path):
        raise CWMError(Code.STATE, f"another process serves the socket {path}; stop it, or choose another CWM_SOCKET")
    path.unlink()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its queue is full
        return True
