"""`cwm serve --detach` returns once vLLM answers, and `cwm stop` ends it. A small server stands for vLLM."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cwm_mcp import serve_process
from cwm_mcp.cli.app import app
from cwm_mcp.serve import Command

SERVER = """
import http.server, signal, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


@pytest.fixture
def home(home: Path) -> Iterator[Path]:
    """Return a CWM_HOME, and end what serves it after the test."""
    yield home
    pid = serve_process.serving(home)
    if pid is not None:
        serve_process.stop(pid, 30)


def serve(monkeypatch: pytest.MonkeyPatch, code: str, port: int, *words: str) -> Result:
    program = Command((sys.executable, "-c", code, str(port)), {})
    monkeypatch.setattr("cwm_mcp.serve.installed_build", lambda: None)
    monkeypatch.setattr("cwm_mcp.serve.compose", lambda *_: program)
    return cwm("serve", *words, "--port", str(port))


@pytest.mark.parametrize("words", [("--detach", "m"), ("m", "--detach")])
def test_it_returns_once_vllm_answers_and_stop_ends_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, port: int, words: tuple[str, ...]
) -> None:
    ran = serve(monkeypatch, SERVER, port, *words)
    assert ran.exit_code == 0, ran.stderr
    assert f"vLLM answers at http://localhost:{port}" in ran.stdout and "cwm stop" in ran.stdout
    assert str(home / "engine.log") in ran.stderr
    pid = serve_process.serving(home)
    stopped = cwm("stop")
    assert stopped.exit_code == 0 and f"process {pid}" in stopped.stdout
    assert serve_process.serving(home) is None
    again = cwm("stop")
    assert again.exit_code == 1 and "CWM-5001" in again.stderr


def test_a_vllm_that_ends_at_once_shows_the_end_of_its_log(
    home: Path, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    ran = serve(monkeypatch, "import sys; sys.exit('no such model')", port, "--detach", "m")
    assert ran.exit_code == 1
    assert "no such model" in ran.stderr and "exit code 1" in ran.stderr


def test_stop_without_an_engine_says_so(home: Path) -> None:
    ran = cwm("stop", "--json")
    assert ran.exit_code == 1 and '"code": 5001' in ran.stderr
