"""The process of `cwm serve`: start it in the background, find it again, end it.

`serve.json` in CWM_HOME names the process and when it began, because the number alone may belong to another process
later. Blocks on the disk and on the process.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cwm_connector.core.errors import Code, CWMError

_RECORD: Final = "serve.json"
_LOG: Final = "engine.log"
_LOOK_EVERY_S: Final = 0.1
_STATE, _BEGAN = 0, 19
"""Fields of /proc/PID/stat, counted behind the name of the program."""


def log_path(home: Path) -> Path:
    """Return where an engine in the background writes what it would print."""
    return home / _LOG


def remember(home: Path, pid: int) -> None:
    """Write down which process serves this home. Raises: `Code.WRITE_FAILED`."""
    path = home / _RECORD
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"pid": pid, "began": began(pid)}, file)
    except OSError as problem:
        raise CWMError(Code.WRITE_FAILED, f"{path} can't be written ({problem.strerror}); check CWM_HOME") from None


def serving(home: Path) -> int | None:
    """Return the process that serves this home, if `cwm serve` has started it and it still runs."""
    try:
        record = json.loads((home / _RECORD).read_text())
        pid, since = int(record["pid"]), int(record["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid if began(pid) == since else None


def began(pid: int) -> int | None:
    """Return when a process began, in the kernel's ticks, or None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in "ZX" else int(fields[_BEGAN])


def start(argv: Sequence[str], environment: Mapping[str, str], home: Path) -> "subprocess.Popen[bytes]":
    """Start a program that outlives this process and its terminal. Raises: `Code.STATE`, `Code.WRITE_FAILED`."""
    path = log_path(home)
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise CWMError(Code.WRITE_FAILED, f"{path} can't be written ({problem.strerror}); check CWM_HOME") from None
    try:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    except OSError as problem:
        raise CWMError(Code.STATE, f"{argv[0]} cannot be started ({problem.strerror}); install vLLM again") from None
    finally:
        os.close(log)
    remember(home, process.pid)
    return process


def last_lines(path: Path, count: int) -> list[str]:
    """Return the end of a log."""
    try:
        return path.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def stop(pid: int, limit_s: float) -> float:
    """Ask a process to end and wait for it. Return how many seconds it took.

    Raises: `Code.OPERATION_TIMEOUT` if it still runs after `limit_s`, `Code.NOT_ALLOWED` for another user's.
    """
    started, since = time.monotonic(), began(pid)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return 0.0
    except PermissionError:
        raise CWMError(Code.NOT_ALLOWED, f"process {pid} belongs to another user; stop it as that user") from None
    while since is not None and began(pid) == since:
        if time.monotonic() - started > limit_s:
            raise CWMError(
                Code.OPERATION_TIMEOUT,
                f"the engine (process {pid}) was asked to end and still runs after {limit_s:g} s; wait and call again",
                pid=pid,
            )
        time.sleep(_LOOK_EVERY_S)
    return time.monotonic() - started
