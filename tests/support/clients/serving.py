"""Runs a server of a client's own for as long as a test needs it."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx


@contextmanager
def serving(
    command: Sequence[str | Path], folder: Path, variables: Mapping[str, str], health: str, limit_s: float
) -> Iterator[str]:
    """Start a server in `folder` on a free port, wait until the path `health` answers, and yield its URL.

    `variables` is its whole environment but for HOME and PATH. Raises: RuntimeError with the end of its log if it ends
    or does not answer within `limit_s`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env={"HOME": str(folder), "PATH": os.environ["PATH"], **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, f"{url}{health}", log, limit_s)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path, limit_s: float) -> None:
    limit = time.monotonic() + limit_s
    while process.poll() is None and time.monotonic() < limit:
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"{log.stem} does not answer: {log.read_text()[-2000:]}")
