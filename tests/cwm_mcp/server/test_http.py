"""`python -m cwm_mcp --http`: both eras over it, who is let in and who is not, and what is said of secrets."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextResourceContents

from cwm_connector.core.errors import CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api.http_address import Address
from cwm_mcp.server.http_access import HttpSettings, allowed
from tests.cwm_mcp.canned import FROZEN, canned_engine
from tests.cwm_mcp.server.test_tools import ERAS, TABLE, answer, error

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-of-the-tests"
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}},
}


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    """On loopback, wherever it listens."""
    log: Path

    def client(self, era: str, token: str | None = None) -> Client:
        http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"} if token else {})
        return Client(streamable_http_client(self.url, http_client=http), mode=era)

    def post(self, headers: Mapping[str, str] | None = None) -> httpx.Response:
        accept = {"Accept": "application/json, text/event-stream"}
        return httpx.post(self.url, json=HELLO, headers={**accept, **(headers or {})}, timeout=20)


@contextmanager
def serving(tmp_path: Path, address: str = "0", module: str = "cwm_mcp", **settings: str) -> Iterator[Server]:
    # Most tests here are about something else than the token.
    flags = ["--no-token"] if address == "0" else []
    log = tmp_path / "http.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--http", address, *flags],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            first = process.stderr.readline()
            stderr.write(first)
            stderr.flush()
            url = first.removeprefix("serving MCP at ").split(";")[0].strip()
            assert url.startswith("http://"), first + process.stderr.read()
            yield Server(f"http://127.0.0.1:{url.rpartition(':')[2]}", log)
        finally:
            process.terminate()
            said, rest = process.communicate(timeout=20)
            stderr.write(rest)
    assert said == ""


# --- both eras ---


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("module", ["cwm_mcp", "context_window_manager"])
async def test_the_whole_server_answers_over_http(filled: Path, tmp_path: Path, era: str, module: str) -> None:
    with serving(tmp_path, module=module) as server:
        async with server.client(era) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            windows = await answer(client, "window_list")
            thaw = await error(client, "window_thaw", window_name="stem")
            (stem,) = (await client.read_resource("window://stem")).contents
            prompts = (await client.list_prompts()).prompts
    assert tools == TABLE.keys()
    assert windows["total"] == 3
    assert thaw["code"] == 5001
    assert isinstance(stem, TextResourceContents)
    assert '"name":"stem"' in stem.text
    assert len(prompts) == 3


@pytest.mark.parametrize("era", ERAS)
async def test_progress_comes_over_http(settings: Settings, tmp_path: Path, era: str) -> None:
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with canned_engine(settings, FREEZE=FROZEN):
        with serving(tmp_path) as server:
            async with server.client(era) as client:
                arguments = {"session_id": "s", "window_name": "w"}
                await client.call_tool("window_freeze", arguments, progress_callback=on_progress)
    assert heard[-1] == 3


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_goes_on_after_a_restart_of_the_server(filled: Path, tmp_path: Path, era: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with serving(tmp_path, address, CWM_HTTP_TOKEN=TOKEN) as server:
        client = server.client(era, TOKEN)
        await client.__aenter__()
        before = await answer(client, "window_list")
    with serving(tmp_path, address, CWM_HTTP_TOKEN=TOKEN) as server:
        assert await answer(client, "window_list") == before
        assert (await error(client, "window_thaw", window_name="stem"))["code"] == 5001
        async with server.client(era, TOKEN) as new:
            assert await answer(new, "window_list") == before
        strange = {"Mcp-Session-Id": "of-nobody"}
        assert server.post(strange).status_code == 401
        assert server.post(strange | {"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        await client.__aexit__(None, None, None)


async def test_current_is_nobody_over_http(filled: Path, tmp_path: Path) -> None:
    with serving(tmp_path, CLAUDE_CODE_SESSION_ID="of-who-started-it") as server:
        async with server.client("auto") as client:
            about = await error(client, "window_freeze", session_id="current", window_name="w")
    assert about["code"] == 1001
    assert "session_list" in about["message"]


# --- who is let in ---


def test_loopback_needs_a_token_too_unless_it_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.post().status_code == 200
    assert not (home / "http-token").exists()
    with serving(tmp_path, "127.0.0.1:0") as server:
        assert server.post().status_code == 401
        token = (home / "http-token").read_text().strip()
        assert server.post({"Authorization": f"Bearer {token}"}).status_code == 200
    assert stat.S_IMODE((home / "http-token").stat().st_mode) == 0o600


def test_no_token_beyond_loopback_is_one_line(home: Path) -> None:
    command = [sys.executable, "-m", "cwm_mcp", "--http", "0.0.0.0:0", "--no-token"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert ran.stderr.startswith("CWM-1003: --no-token is for loopback")


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}]
)
def test_a_token_that_is_set_is_asked_for_on_loopback_too(home: Path, tmp_path: Path, headers: dict[str, str]) -> None:
    with serving(tmp_path, CWM_HTTP_TOKEN=TOKEN) as server:
        refused = server.post(headers)
        assert server.post({"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("era", ERAS)
async def test_beyond_loopback_a_token_is_made_kept_and_required(filled: Path, tmp_path: Path, era: str) -> None:
    path = filled / "http-token"
    with serving(tmp_path, "0.0.0.0:0") as server:
        assert server.post().status_code == 401
        token = path.read_text().strip()
        async with server.client(era, token) as client:
            assert (await answer(client, "window_list"))["total"] == 3
        said = server.log.read_text()
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert str(path) in said
    with serving(tmp_path, "0.0.0.0:0") as server:
        assert server.post({"Authorization": f"Bearer {token}"}).status_code == 200


FOREIGN = [
    ({"Host": "evil.example"}, 421),
    ({"Host": "127.0.0.1.evil.example"}, 421),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "http://localhost.evil.example:80"}, 403),
    ({"Origin": "null"}, 403),
]


@pytest.mark.parametrize("address", ["0", "0.0.0.0:0"])
def test_a_page_that_rebinds_a_name_is_refused(home: Path, tmp_path: Path, address: str) -> None:
    authorised = {"Authorization": f"Bearer {TOKEN}"}
    with serving(tmp_path, address, CWM_HTTP_TOKEN=TOKEN) as server:
        answers = [(headers, server.post({**authorised, **headers}).status_code) for headers, _ in FOREIGN]
        assert server.post({**authorised, "Origin": "http://localhost:3000"}).status_code == 200
    assert answers == FOREIGN


def test_a_name_that_is_set_is_let_in(home: Path, tmp_path: Path) -> None:
    with serving(tmp_path, CWM_HTTP_HOSTS="cwm.example, other.example") as server:
        for name in ("cwm.example", "other.example:8443"):
            assert server.post({"Host": name, "Origin": f"https://{name}"}).status_code == 200


def test_beyond_loopback_the_machines_own_names_are_let_in() -> None:
    anywhere = allowed(Address.of("0.0.0.0:80"), HttpSettings()).allowed_hosts
    assert f"{socket.gethostname()}:*" in anywhere
    assert "[fd00::1]:*" in allowed(Address.of("[fd00::1]:80"), HttpSettings()).allowed_hosts


# --- what can't work ---


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("8765", "127.0.0.1", 8765, True),
        (":8765", "127.0.0.1", 8765, True),
        ("localhost:1", "localhost", 1, True),
        ("127.8.8.8:1", "127.8.8.8", 1, True),
        ("[::1]:1", "::1", 1, True),
        ("0.0.0.0:1", "0.0.0.0", 1, False),
        ("[::]:1", "::", 1, False),
        ("localhost.example:1", "localhost.example", 1, False),
    ],
)
def test_an_address_is_taken_apart_and_only_loopback_counts_as_loopback(
    text: str, host: str, port: int, loopback: bool
) -> None:
    address = Address.of(text)
    assert (address.host, address.port, address.is_loopback) == (host, port, loopback)


@pytest.mark.parametrize("text", ["", "localhost", "localhost:", "x:y", "1:65536", "::1:80", "80 "])
def test_what_is_no_address_is_1003(text: str) -> None:
    with pytest.raises(CWMError, match="write 8765 or 127") as refused:
        Address.of(text)
    assert refused.value.code == 1003


def refused_start(*words: str, **settings: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "cwm_mcp", *words],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    return line


def test_a_port_that_is_taken_is_one_line(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused_start("--http", str(port))
    assert line.startswith("CWM-1003: ")
    assert str(port) in line


@pytest.mark.parametrize("token", ["short", "sixteen letters and a space", "ünmöglich-im-kopf"])
def test_a_token_that_cannot_work_is_refused_without_repeating_it(home: Path, token: str) -> None:
    line = refused_start("--http", "0", CWM_HTTP_TOKEN=token)
    assert line.startswith("CWM-1003: the setting CWM_HTTP_TOKEN")
    assert token not in line


@pytest.mark.parametrize(("mode", "content", "code"), [(0o644, "x" * 32, 8001), (0o600, "", 1003)])
def test_a_kept_token_that_is_none_any_more_is_refused(home: Path, mode: int, content: str, code: int) -> None:
    path = home / "http-token"
    path.write_text(content)
    path.chmod(mode)
    line = refused_start("--http", "0.0.0.0:0")
    assert line.startswith(f"CWM-{code}: {path}")
    assert "delete it" in line


# --- what is logged ---


@pytest.mark.parametrize("era", ERAS)
async def test_neither_tokens_nor_session_ids_are_logged(filled: Path, tmp_path: Path, era: str) -> None:
    ids: list[str] = []

    async def note(response: Any) -> None:
        ids.extend(value for name, value in response.headers.items() if name.lower() == "mcp-session-id")

    with serving(tmp_path, "0.0.0.0:0", CWM_HTTP_TOKEN=TOKEN, CWM_LOG_LEVEL="INFO") as server:
        http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, event_hooks={"response": [note]})
        async with Client(streamable_http_client(server.url, http_client=http), mode=era) as client:
            await answer(client, "window_list")
        server.post({"Authorization": "Bearer wrong-token-of-a-stranger"})
    # Without white space, because the library's log breaks lines.
    said = "".join(server.log.read_text().split())
    assert bool(ids) is (era == "legacy")
    for secret in (TOKEN, "wrong-token-of-a-stranger", *ids):
        assert secret not in said
