"""The server of the control socket: who may bind it and who may connect to it.

The socket is private to the engine's user. A new folder gets mode 0700, the socket 0600, and the kernel says which user
is at the other end of each connection. The holder of the `HomeLock` may replace a socket that a killed engine left.
connection.py reads what a client sends, calls.py runs its calls. Control thread.
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

from cwm_connector.control.calls import AcceptedWork, CallHandler
from cwm_connector.control.connection import Connection, ConnectionLimits
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.wire import Welcome

logger = logging.getLogger(__name__)
_UCRED: Final = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""
_LIMITS: Final = ConnectionLimits()


class ControlServer:
    """Serves `operations` on a unix socket. It belongs to the event loop that `start` runs on and ends with it."""

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
        self._accepted = AcceptedWork(limits.carried_on, limits.call_s)
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Bind the socket. Clients can connect when it returns. The home's lock must be held.

        Raises: `Code.ARGUMENT` if there can be no socket at the path, `Code.STATE` if another process serves it.
        """
        listener = await asyncio.start_unix_server(self._accept, sock=_bind_private(self._path))
        self._track(asyncio.create_task(self._until_cancelled(listener, self._path.lstat().st_ino)))
        await asyncio.sleep(0)  # a task that is cancelled before it began would leave the socket

    async def close(self) -> None:
        """Cancel the operations, end the connections and remove the socket."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._accepted.close()

    async def _until_cancelled(self, listener: asyncio.Server, inode: int) -> None:
        """Hold the socket until the task is cancelled, which the end of the event loop does too."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            listener.close()
            with contextlib.suppress(OSError):
                if self._path.lstat().st_ino == inode:
                    self._path.unlink()

    def _track(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._track(task)
        connection = Connection(reader, writer, self._operations, self._welcome, self._limits, self._accepted)
        if not _may_connect(writer):
            return await connection.refuse(
                CWMError(Code.NOT_ALLOWED, "this engine belongs to another user; call as the user that runs it")
            )
        if len(self._connections) >= self._limits.connections and not self._make_place():
            busy = f"{self._limits.connections} clients wait for answers; close one, or try again later"
            return await connection.refuse(CWMError(Code.BUSY, busy))
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
        return await connection.wait_for_calls()

    def _make_place(self) -> bool:
        """End the connection that has been idle the longest. Return False if no client is idle."""
        idle = [each for each in self._connections if each.is_idle]
        if not idle:
            return False
        longest = min(idle, key=lambda each: each.heard_at)
        self._connections.discard(longest)
        longest.give_way()
        return True


def _may_connect(writer: asyncio.StreamWriter) -> bool:
    """Return True for a process of the engine's own user or of root."""
    peer = writer.get_extra_info("socket")
    _pid, uid, _gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (os.geteuid(), 0)


def _bind_private(path: Path) -> socket.socket:
    """Return a socket bound to `path` with mode 0600. A socket that no process serves is replaced."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _warn_if_others_may_write(path.parent)
        _remove_stale(path)
        # Linux gives the file the mode of the unbound socket, so it is private at once and no umask has to be changed.
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
    """Warn of a folder in which others may replace the socket. It is left as it is: it may have other uses, as /tmp."""
    mode = folder.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        logger.warning("other users may replace the socket in %s; `chmod 700` the folder", folder)


def _remove_stale(path: Path) -> None:
    """Remove a socket that no process serves.

    Raises: `Code.ARGUMENT` for another kind of file, `Code.STATE`, OSError.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CWMError(Code.ARGUMENT, f"CWM_SOCKET names {path}, which is not a socket; choose another path")
    # The lock belongs to one home. Two homes may have been given the same socket.
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
