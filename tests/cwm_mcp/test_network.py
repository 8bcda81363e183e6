"""The ways to vLLM: proxies, certificates and sockets, each tried with a real server."""

import asyncio
import json
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.stats import Component
from cwm_connector.settings import Settings
from cwm_mcp.api.vllm_http import post, vllm_health
from cwm_mcp.doctor.vllm import check_vllm
from cwm_mcp.network import proxy_for

DEAD = "http://127.0.0.1:9"
VARIABLES = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Answers(BaseHTTPRequestHandler):
    """Answers everything with 200 and JSON, as vLLM or as a proxy that forwards; keeps the request lines."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        body = json.dumps({"data": [{"id": "m"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def address_string(self) -> str:
        return "client"

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def running(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def http_server(tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    handler: Any = type("Handler", (Answers,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with running(server):
        yield server.server_port, handler.seen


def health(url: str) -> Component:
    return asyncio.run(vllm_health(Settings(vllm_url=url)))


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize("proxy", [DEAD, "socks5://127.0.0.1:9", "127.0.0.1:9", "nonsense://", "http://[::1"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_never_proxied(monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str, host: str) -> None:
    monkeypatch.setenv(variable, proxy)
    with http_server() as (port, _):
        settings = Settings(vllm_url=f"http://{host}:{port}")
        assert asyncio.run(vllm_health(settings)).status == "healthy"
        assert asyncio.run(post(settings, "/tokenize", {}, timeout_s=5))["data"]
        assert asyncio.run(check_vllm(settings, None))[0].status == "ok"


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}", "HTTP://127.0.0.1:{}/"])
def test_another_machine_is_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    with http_server() as (port, seen):
        monkeypatch.setenv("HTTP_PROXY", form.format(port))
        assert health("http://gpu.invalid:8000").status == "healthy"
    assert seen == ["http://gpu.invalid:8000/health"]


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        (DEAD, "through the proxy of HTTP_PROXY; set NO_PROXY=gpu.invalid"),
        ("socks5://127.0.0.1:9", "HTTP_PROXY names a SOCKS proxy"),
        ("socks://127.0.0.1:9", "HTTP_PROXY names a SOCKS proxy"),
        ("quic://127.0.0.1:9", "HTTP_PROXY is no address of a proxy"),
        ("http://127.0.0.1:port", "HTTP_PROXY is no address of a proxy"),
    ],
)
def test_a_proxy_that_can_t_help_is_one_line_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, proxy: str, said: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    component = health("http://gpu.invalid:8000")
    assert component.status == "unhealthy"
    assert said in component.message and "NO_PROXY" in component.message and "\n" not in component.message
    with pytest.raises(CWMError, match="HTTP_PROXY"):
        asyncio.run(post(Settings(vllm_url="http://gpu.invalid:8000"), "/tokenize", {}, timeout_s=5))
    assert asyncio.run(check_vllm(Settings(vllm_url="http://gpu.invalid:8000"), None))[0].status == "error"


@pytest.mark.parametrize(
    ("no_proxy", "url", "proxied"),
    [
        ("*", "http://gpu:8000", False),
        ("gpu", "http://gpu:8000", False),
        ("other gpu", "http://gpu:8000", False),
        (".example.com", "http://gpu.example.com", False),
        ("example.com", "http://gpu.example.com", False),
        ("*.example.com", "http://gpu.example.com", False),
        ("example.com", "http://badexample.com", True),
        ("10.0.0.0/8", "http://10.1.2.3:8000", False),
        ("10.0.0.0/8", "http://11.1.2.3:8000", True),
        ("10.1.2.3", "http://10.1.2.3:8000", False),
        ("fd00::/8", "http://[fd00::7]:8000", False),
        ("gpu:8000", "http://gpu:8000", False),
        ("gpu:8001", "http://gpu:8000", True),
        ("", "http://gpu:8000", True),
        ("", "unix:///run/vllm.sock", False),
    ],
)
def test_no_proxy_is_read_as_others_read_it(no_proxy: str, url: str, proxied: bool) -> None:
    assert (proxy_for(url, {"HTTP_PROXY": "http://p:1", "NO_PROXY": no_proxy}) is not None) is proxied


def authority(folder: Path) -> Path:
    """Make a certificate authority of our own and a certificate for 127.0.0.1."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=own -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", "key.pem", "-out", "ca.pem"], cwd=folder, check=True, capture_output=True
    )
    return folder / "ca.pem"


def test_a_private_certificate_authority_is_trusted_where_a_variable_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca = authority(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(ca, tmp_path / "key.pem")
    with http_server(tls) as (port, _):
        url = f"https://127.0.0.1:{port}"
        assert "set SSL_CERT_FILE" in health(url).message
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            with monkeypatch.context() as patched:
                patched.setenv(variable, str(ca))
                assert health(url).status == "healthy"
                patched.setenv(variable, str(tmp_path / "none.pem"))
                assert f"{variable} names" in health(url).message
                patched.setenv(variable, str(tmp_path / "key.pem"))
                assert f"{variable} names" in health(url).message


def test_a_unix_socket_is_spoken_to(tmp_path: Path) -> None:
    handler = type("Handler", (Answers,), {"seen": []})
    path = tmp_path / "vllm.sock"
    with running(socketserver.ThreadingUnixStreamServer(str(path), handler)):
        assert health(f"unix://{path}").status == "healthy"
    path.unlink()
    assert health(f"unix://{path}").status == "unhealthy"
