"""A vLLM server for the GPU benchmark, with CWM or with a connector of vLLM's own, and its client."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.timed_call import timed_call
from cwm_connector.protocol.calls import Args, Op

START_S: Final = 300
_ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "VLLM_SERVER_DEV_MODE": "1",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion: how long it took, its tokens and their logprobs, and how many prompt tokens were cached."""

    seconds: float
    token_ids: list[int]
    logprobs: list[float] | None
    cached: int


class Server:
    """One server process in a session of its own. Leave the `with` block to kill it."""

    def __init__(self, command: Sequence[str], home: Path, log: Path, environment: Mapping[str, str]) -> None:
        """`command` is completed with host and port. The server writes to `log`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.url = f"http://127.0.0.1:{port}"
        self._home = home
        self._log = log
        self._command = [*command, "--host", "127.0.0.1", "--port", str(port)]
        self._environment = {
            **os.environ,
            **_ENVIRONMENT,
            "CWM_HOME": str(home),
            "CWM_VLLM_URL": self.url,
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> float:
        """Start the process and return the seconds until it answers. Raises RuntimeError if it never does."""
        began = time.monotonic()
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() - began > START_S:
                self.kill()
                raise RuntimeError(f"the server does not answer; see {self._log}")
            time.sleep(0.3)
        self.complete(prompt(9, 300), 4, cache_salt="warm")
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill the process and its workers with -9."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            time.sleep(1)  # the device gives the memory back a moment later

    def complete(self, token_ids: Sequence[int], count: int, *, logprobs: bool = False, **who: str) -> Answer:
        """Ask for `count` greedy tokens. `who`: session_id or cache_salt."""
        body: dict[str, Any] = {**self._greedy(token_ids, count), "return_token_ids": True, **who}
        if logprobs:
            body["logprobs"] = 5
        began = time.perf_counter()
        answer = json.loads(self._post("/v1/completions", body).read())
        seconds = time.perf_counter() - began
        choice = answer["choices"][0]
        details = answer["usage"].get("prompt_tokens_details") or {}
        chosen = choice["logprobs"]["token_logprobs"] if logprobs else None
        return Answer(seconds, choice["token_ids"], chosen, details.get("cached_tokens") or 0)

    def token_times(self, token_ids: Sequence[int], count: int) -> list[float]:
        """Ask for `count` tokens and return when each of them arrived."""
        body = {**self._greedy(token_ids, count), "stream": True}
        with self._post("/v1/completions", body) as lines:
            return [time.perf_counter() for line in lines if line.startswith(b"data: {")]

    def forget(self) -> None:
        """Drop vLLM's prefix cache."""
        self._post("/reset_prefix_cache", {}).read()

    def call(self, op: Op, arguments: Args) -> tuple[dict[str, Any], float]:
        """Call an operation of CWM. Return its answer and the milliseconds that the caller waited."""
        return asyncio.run(timed_call(self._home, op, arguments))

    def _greedy(self, token_ids: Sequence[int], count: int) -> dict[str, Any]:
        return {
            "model": "m",
            "prompt": list(token_ids),
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
        }

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=600)

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.url}/health", timeout=2).status == 200)
        except (urllib.error.URLError, OSError):
            return False


def prompt(seed: int, length: int) -> list[int]:
    """Return random token ids, the same for the same seed."""
    numbers = random.Random(seed)
    return [numbers.randrange(5, 49_000) for _ in range(length)]


def drop_page_cache(folder: Path) -> None:
    """Drop what the system keeps in memory of the files below `folder`."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def with_cwm(model: str, options: Sequence[str]) -> list[str]:
    """Return the command that serves `model` with CWM."""
    return [sys.executable, "-m", "cwm_mcp.cli", "serve", model, *options]


def with_connector(model: str, connector: Mapping[str, Any], options: Sequence[str]) -> list[str]:
    """Return the command that serves `model` with a connector of vLLM's own."""
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--enable-prefix-caching"]
    return [*server, "--kv-transfer-config", json.dumps(connector), *options]
