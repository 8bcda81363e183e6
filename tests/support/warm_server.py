"""Starts servers whose modules are imported already: `python -m tests.support.warm_server FD MODULE…`, for warm.py.

A server is three processes that import 6,000 modules each. This process imports them once, starts no thread of Python
and computes nothing. Each server is a fork of it. What the server spawns is forked from a process of the same state in
the server's session, and gets the environment that the spawning process has at that moment, as a spawned process does.
All else is what `cwm serve` runs.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import context, forkserver, resource_tracker, spawn
from pathlib import Path
from typing import Any, NoReturn


@dataclass(frozen=True, slots=True)
class Request:
    """A server to start: its command line, which is `python -m MODULE …`, and what a process has from its parent."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    log: str


class Replaced(BaseException):
    """Thrown by what stands for os.execvpe: the program that the process would have become."""

    def __init__(self, _program: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__()
        self.argv = argv
        self.environment = environment


def main() -> None:
    listener_fd, *modules = sys.argv[1:]
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # a collection would touch, and so copy, every page
    become(serve(int(listener_fd)))


def serve(listener_fd: int) -> Request:
    """Fork a server for each connection, and tell the connection its process id and, later, its exit status.

    Return only in the forks, with what they have to become. End when stdin ends.
    """
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector, socket.socket(fileno=listener_fd) as listener:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    os._exit(0)
                if key.fileobj is listener:
                    connection = listener.accept()[0]
                    with connection.makefile() as words:
                        request = Request(**json.loads(words.readline()))
                    if (pid := os.fork()) == 0:
                        for _, other in (*running.values(), (0, connection)):
                            other.close()
                        return request
                    pid_fd = os.pidfd_open(pid)
                    running[pid_fd] = pid, connection
                    selector.register(pid_fd, selectors.EVENT_READ)
                    _tell(connection, pid)
                    continue
                selector.unregister(key.fd)
                pid, connection = running.pop(key.fd)
                os.close(key.fd)
                with connection:
                    _tell(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _tell(connection: socket.socket, number: int) -> None:
    """Send a number. A caller that is gone needs none."""
    with suppress(OSError):
        connection.sendall(f"{number}\n".encode())


def become(request: Request) -> None:
    """Run the request's command in a session of its own, up to its end."""
    os.setsid()
    os.chdir(request.folder)
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(request.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for fd, place in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, place)
    os.close(null)
    os.close(log)
    _set_environment(request.environment)
    _spawn_by_forking(Path(tempfile.mkdtemp(dir=Path(request.log).parent)) / "s")
    os.execvpe = _replace  # type: ignore[assignment]
    argv = request.argv
    while True:
        try:
            return _run(argv)
        except Replaced as program:
            argv = program.argv
            _set_environment(program.environment)


def _run(argv: Sequence[str]) -> None:
    _python, option, module, *arguments = argv
    assert option == "-m"
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _replace(program: str, argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    raise Replaced(program, argv, environment)


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


class _Environment:
    """The variables of the process that pickles it. They are set where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[dict[str, str]]]:
        return _set_environment, (dict(os.environ),)


def _spawn_by_forking(address: Path) -> None:
    """Let multiprocessing's "spawn" in this process and its children fork from a process of the present state."""
    alive_r, alive_w = os.pipe()
    server: Any = forkserver._forkserver
    # Otherwise a child would start a server of its own.
    server.ensure_running = resource_tracker.ensure_running
    context._concrete_contexts["spawn"] = context._concrete_contexts["forkserver"]  # type: ignore[attr-defined]
    prepared = spawn.get_preparation_data
    spawn.get_preparation_data = lambda name: {"environment": _Environment(), **prepared(name)}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        if os.fork() == 0:
            os.close(alive_w)
            forkserver.main(listener.detach(), alive_r, [])
    os.close(alive_r)
    server._forkserver_address, server._forkserver_alive_fd = str(address), alive_w


if __name__ == "__main__":
    from tests.support import warm_server

    # A pickle names a function by its module, which __main__ is in no other process.
    warm_server.main()
