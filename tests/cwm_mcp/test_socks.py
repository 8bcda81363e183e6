"""The ways to vLLM through a real SOCKS proxy: the MCP server, `cwm` and `cwm doctor`, each a process of its own."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.cwm_mcp.test_network import Answers, running
from tests.support.clients.pypi import program
from tests.support.paths import ROOT

PACKAGE = "socksio"


@dataclass
class Away:
    """A server at an address of this machine that is not loopback, and the SOCKS proxy on the way."""

    url: str
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://").partition(":")[0]

    def connections(self) -> int:
        """Return how many the proxy has opened to the server."""
        return self.log.read_text().count(f"connected to {self.url.removeprefix('http://')}")


@pytest.fixture
def away(home: Path, tmp_path: Path) -> Iterator[Away]:
    log = tmp_path / "socks.log"
    handler: Any = type("Handler", (Answers,), {"seen": []})
    server = ThreadingHTTPServer((own_address(), 0), handler)
    with running(server), socks_proxy(log) as proxy:
        found = Away(f"http://{server.server_address[0]!s}:{server.server_port}", log)
        kept = {name: os.environ[name] for name in ("PATH", "CWM_HOME", "HOME")}
        found.environment = {**kept, "CWM_VLLM_URL": found.url, "ALL_PROXY": proxy}
        yield found


def own_address() -> str:
    """Return an IPv4 address of this machine that others could reach, or skip the test."""
    told = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    for address in told:
        if "." in address and not address.startswith("127."):
            return address
    pytest.skip("this machine has no address but loopback")


@contextmanager
def socks_proxy(log: Path) -> Iterator[str]:
    """Run microsocks, which names each connection in the log, and yield its URL."""
    command = shutil.which("microsocks")
    if command is None:
        pytest.skip("microsocks is not installed (Debian and Ubuntu: apt-get install microsocks)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as errors:
        process = subprocess.Popen([command, "-i", "127.0.0.1", "-p", str(port)], stderr=errors)
    try:
        _wait(port)
        yield f"socks5://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(port: int) -> None:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("microsocks does not listen")


def with_the_package(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process that has what `pip install 'httpx[socks]'` adds."""
    python = program("socks", "python", PACKAGE)
    (packages,) = (python.parents[1] / "lib").glob("python3.*/site-packages")
    return {**environment, "PYTHONPATH": str(packages)}


def cwm(environment: dict[str, str], *arguments: str) -> Any:
    command = [sys.executable, "-m", "cwm_mcp.cli", *arguments, "--json"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ran.stderr
    return json.loads(ran.stdout)


def vllm_by_cwm(environment: dict[str, str]) -> tuple[bool, str]:
    (vllm,) = cwm(environment, "health", "vllm")["components"]
    return vllm["status"] == "healthy", vllm["message"]


def vllm_by_doctor(environment: dict[str, str]) -> tuple[bool, str]:
    checks = [check for check in cwm(environment, "doctor")["checks"] if check["name"] == "vllm"]
    return checks[0]["status"] == "ok", " ".join(f"{check['message']} {check.get('fix')}" for check in checks)


def vllm_by_mcp(environment: dict[str, str]) -> tuple[bool, str]:
    async def ask() -> Any:
        server = StdioServerParameters(command=sys.executable, args=["-m", "cwm_mcp"], env={**environment}, cwd=ROOT)
        async with Client(stdio_client(server)) as client:
            answer = await client.call_tool("health_check", {"component": "vllm"})
        assert answer.structured_content is not None
        return answer.structured_content["components"][0]

    vllm = asyncio.run(ask())
    return vllm["status"] == "healthy", vllm["message"]


WAYS = pytest.mark.parametrize("way", [vllm_by_mcp, vllm_by_cwm, vllm_by_doctor])


@WAYS
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
def test_another_machine_is_reached_through_a_socks_proxy(away: Away, way: Any, scheme: str) -> None:
    environment = with_the_package(away.environment)
    environment["ALL_PROXY"] = environment["ALL_PROXY"].replace("socks5", scheme)
    reached, said = way(environment)
    assert reached, said
    assert away.connections() > 0


@WAYS
def test_without_the_package_one_line_names_the_variable(away: Away, way: Any) -> None:
    reached, said = way(away.environment)
    assert not reached and "\n" not in said
    assert "ALL_PROXY names a SOCKS proxy" in said and "pip install 'httpx[socks]'" in said
    assert f"NO_PROXY={away.host}" in said
    assert away.connections() == 0


@WAYS
def test_no_proxy_goes_past_a_socks_proxy_without_the_package(away: Away, way: Any) -> None:
    reached, said = way({**away.environment, "NO_PROXY": away.host})
    assert reached, said
    assert away.connections() == 0


@WAYS
def test_a_socks_proxy_that_is_gone_is_one_line_that_names_the_variable(away: Away, way: Any) -> None:
    reached, said = way({**with_the_package(away.environment), "ALL_PROXY": "socks5://127.0.0.1:9"})
    assert not reached and "\n" not in said
    assert f"through the proxy of ALL_PROXY; set NO_PROXY={away.host}" in said


@WAYS
def test_loopback_never_goes_through_a_socks_proxy(away: Away, way: Any) -> None:
    handler: Any = type("Handler", (Answers,), {"seen": []})
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as near:
        url = f"http://localhost:{near.server_port}"
        reached, said = way({**with_the_package(away.environment), "CWM_VLLM_URL": url})
    assert reached, said
    assert "connected to" not in away.log.read_text()
