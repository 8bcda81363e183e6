"""Starts vLLM servers in seconds instead of a minute: they are forked from a process that has imported vLLM already.

What it saves are three imports of 6,000 modules. See warm_server.py for what else differs from a new process.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, Self

from tests.support.paths import ROOT
from tests.support.warm_server import Request

MODULES: Final = (
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "tests.support.resting_queues",
)
"""What the three processes of a server import, and what lets them rest. A server imports for itself what is missing.

LMCache must not be here, nor what imports it: it loads numba, and a worker of vLLM 0.32 that finds numba loaded fails.
"""


class Forked:
    """A server's first process, with those methods of subprocess.Popen that Engine uses."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._numbers = connection.makefile()
        self.pid = int(self._numbers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._numbers.readline())
            self._numbers.close()
            self._connection.close()
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class WarmStarter:
    """Imports in the background from the beginning on. The first server waits for it."""

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cwm-")
        self._address = str(Path(self._folder.name) / "s")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen()
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm_server", str(listener.fileno()), *modules],
                cwd=ROOT, env=environment, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()
        self._folder.cleanup()

    def launch(self, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
        """Start `python -m MODULE …` in a session of its own, as `Engine` does otherwise."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        request = Request(tuple(argv), dict(environment), str(ROOT), str(log))
        connection.sendall(json.dumps(asdict(request)).encode() + b"\n")
        return Forked(connection)
