"""A real vLLM server with CWM in it, as a process that can be started, killed with -9 and started again.

The server runs in a session of its own (setsid), so that all its processes (APIServer, EngineCore, workers) are found
by the session id even when their parent has died first. It gets a store of its own in a short temporary folder (unix
socket paths end at 107 bytes) and none of the caller's CWM_ settings.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, Self

import httpx

from tests.support.api import Api
from tests.support.machine import from_proc, gpu_name

ROOT: Final = Path(__file__).resolve().parents[2]
SERVED_NAME: Final = "SmolLM2-135M-Instruct"
_BYTES: Final = {"bfloat16": 2, "float32": 4}
_FAULT: Final = re.compile(r"(\(\w+ pid=\d+\) ERROR .*\] )?\w+(Error|Exception): ")
_QUIET: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


class EngineDied(RuntimeError):
    """The server did not come up, or ended; the message holds the end of its log."""


def model_folder() -> Path:
    """The small model's checkpoint: CWM_TEST_MODEL, else what `make model` builds. It may be missing."""
    return Path(os.environ.get("CWM_TEST_MODEL", ROOT / "build" / "models" / SERVED_NAME))


def quick_dtype() -> str:
    """Return the type of numbers that this machine computes the small model in quickly, as vLLM's `--dtype`.

    A CPU without bf16 instructions multiplies bf16 matrices many times slower than float32 ones.
    """
    if gpu_name() is not None:
        return "bfloat16"
    flags = set(from_proc("/proc/cpuinfo", "flags").split())
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "float32"


def kv_bytes_per_token(model: Path, dtype: str) -> int:
    """Return the bytes of one token's keys and values in all layers, from the model's own configuration."""
    config = json.loads((model / "config.json").read_text())
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * _BYTES[dtype] * config["num_hidden_layers"] * config["num_key_value_heads"] * head_size)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a server is started. `kv_tokens` is the size of vLLM's own KV cache, for eviction to be within reach."""

    model: Path = field(default_factory=model_folder)
    home: Path | None = None
    """CWM_HOME; None: a new folder that goes with the engine."""
    dtype: str = field(default_factory=quick_dtype)
    """`float32` or `bfloat16`."""
    max_model_len: int = 8192
    kv_tokens: int = 40_960
    cpu_cache_gb: float = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables, CWM_ ones above all."""
    arguments: tuple[str, ...] = ()
    """Further options of vLLM."""
    start_timeout_s: float = 600


class Process(Protocol):
    """The part of subprocess.Popen that a server's first process needs."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def terminate(self) -> None: ...


Launch = Callable[[Sequence[str], Mapping[str, str], Path], Process]
"""Starts a command with an environment in a session of its own. It appends its output to a file."""


def launch_new(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Start a new process."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def quiet_environment() -> dict[str, str]:
    """Return the caller's environment without its CWM_ settings, and with no look-ups of models or usage statistics.

    A server of one of several test workers computes in a worker's share of the cores.
    """
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("CWM_")}
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = len(os.sched_getaffinity(0)) // workers
    return theirs | _QUIET | (compute_threads(max(1, share)) if workers > 1 else {})


def compute_threads(count: int) -> dict[str, str]:
    """Return the variables that give each of a server's workers so many threads, on any core.

    Threads that share a core with others of another server wait for each other at every layer, and burn time.
    """
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(count)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _session_members(leader: int) -> tuple[int, ...]:
    """The living processes of a session, zombies left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _ppid, _pgrp, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state not in ("Z", "X"):
            members.append(int(entry.name))
    return tuple(members)


def _kill(pid: int) -> None:
    """kill -9 of a process that may have ended meanwhile."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Engine:
    """`with Engine(options) as engine:` is a server that answers; it and its folder are gone afterwards.

    Not thread-safe. The port stays the same over a restart, so that clients need not be told.
    """

    def __init__(self, options: EngineOptions | None = None, launch: Launch = launch_new) -> None:
        self.options = options or EngineOptions()
        self.launch = launch
        self.folder = Path(tempfile.mkdtemp(prefix="cwm-"))
        self.home = self.options.home or self.folder / "home"
        self.log = self.folder / "engine.log"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = Api(self.url, SERVED_NAME)
        self._process: Process | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command(self) -> list[str]:
        options = self.options
        kv_bytes = options.kv_tokens * kv_bytes_per_token(options.model, options.dtype)
        return [
            *(sys.executable, "-m", "cwm_mcp.cli", "serve", str(options.model)),
            *("--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", SERVED_NAME),
            *("--dtype", options.dtype, "--max-model-len", str(options.max_model_len)),
            *("--kv-cache-memory-bytes", str(kv_bytes)),
            *("--enforce-eager", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
            *options.arguments,
        ]

    def environment(self) -> dict[str, str]:
        own = {"CWM_HOME": str(self.home), "CWM_CPU_CACHE_GB": str(self.options.cpu_cache_gb), "CWM_VLLM_URL": self.url}
        return quiet_environment() | own | dict(self.options.settings)

    def start(self) -> float:
        """Starts the server and returns once it answers /health, with the seconds that took.

        Raises: EngineDied with the log's end when the process ends or the time is over.
        """
        began = time.monotonic()
        self._process = self.launch(self.command(), self.environment(), self.log)
        while not self._answers():
            if self._process.poll() is not None:
                raise EngineDied(f"the server ended with {self._process.returncode}; its log ends:\n{self.log_tail()}")
            if time.monotonic() - began > self.options.start_timeout_s:
                self.kill_hard()
                raise EngineDied(f"no answer in {self.options.start_timeout_s:.0f} s; its log ends:\n{self.log_tail()}")
            time.sleep(0.2)
        return time.monotonic() - began

    def _answers(self) -> bool:
        try:
            # Plain http on the loopback: loading certificates would cost every try 30 ms.
            answer = httpx.get(f"{self.url}/health", timeout=5, verify=False, trust_env=False)
            return answer.status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    @property
    def pid(self) -> int:
        """Return the id of the server's first process, which ends the others when it is told to end."""
        assert self._process is not None
        return self._process.pid

    def processes(self) -> tuple[int, ...]:
        """The process ids of the server's living processes; none when it is not running."""
        return _session_members(self._process.pid) if self._process else ()

    def kill_hard(self) -> tuple[int, ...]:
        """kill -9 to every process of the server; returns their ids once all are gone."""
        if self._process is None:
            return ()
        killed: set[int] = set()
        deadline = time.monotonic() + 60
        # A process may be forked between the listing and the kill: look again until none is left.
        while members := self.processes():
            for member in members:
                _kill(member)
            killed.update(members)
            if time.monotonic() > deadline:
                raise EngineDied(f"processes {members} outlived kill -9")
            time.sleep(0.05)
        self._process.wait()
        self._process = None
        return tuple(sorted(killed))

    def stop(self, timeout_s: float = 60) -> None:
        """Ends the server as a service manager would: SIGTERM, and time to finish.

        Raises: EngineDied if it is still there afterwards.
        """
        if self._process is None:
            return
        self._process.terminate()
        deadline = time.monotonic() + timeout_s
        while self.processes():
            if time.monotonic() > deadline:
                self.kill_hard()
                raise EngineDied(f"the server outlived SIGTERM; its log ends:\n{self.log_tail()}")
            time.sleep(0.05)
        self._process.wait()
        self._process = None

    def restart(self) -> float:
        """kill -9, start again; returns the seconds of the start."""
        self.kill_hard()
        return self.start()

    def close(self) -> None:
        self.kill_hard()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self, lines: int = 40) -> str:
        """What the log says of CWM's errors and vLLM's first one, then its last lines."""
        said = self.log.read_text(errors="replace").splitlines()
        causes = [line for line in said if "CWM-" in line or _FAULT.match(line)]
        return "\n".join([*dict.fromkeys(causes[-8:]), "…", *said[-lines:]])
