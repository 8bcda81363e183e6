"""The real LiteLLM proxy in front of a server that speaks OpenAI's API."""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.clients.pypi import program

START_S: Final = 120
FORWARDING: Final[Mapping[str, Any]] = {"forward_client_headers_to_llm_api": True}
"""The setting that passes `x-*` headers on."""
KEY: Final = f"sk-{secrets.token_hex(32)}"
"""The key of its clients. Without one it does not start."""


@contextmanager
def proxy(folder: Path, url: str, model: str, general: Mapping[str, Any]) -> Iterator[str]:
    """Run the proxy in front of `url` with these general settings, and yield its own URL."""
    command = program("litellm", "litellm", "litellm")
    config = folder / "litellm.json"
    entry = {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": "dummy"}
    models = [{"model_name": model, "litellm_params": entry}]
    config.write_text(json.dumps({"model_list": models, "general_settings": dict(general)}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "litellm.log").open("ab") as log:
        process = subprocess.Popen(
            [command, "--config", config, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env={
                "HOME": str(folder),
                "PATH": os.environ["PATH"],
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_MASTER_KEY": KEY,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}", folder / "litellm.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    limit = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < limit:
        try:
            if httpx.get(f"{url}/health/liveliness", trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"LiteLLM does not answer: {log.read_text()[-2000:]}")
