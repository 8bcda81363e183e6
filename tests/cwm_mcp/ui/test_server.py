"""The server of `cwm ui`: whom it admits, what it answers, and how it computes the figures."""

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros
from cwm_connector.protocol.stats import Metric
from cwm_connector.settings import Settings
from cwm_mcp.api.http_address import Address
from cwm_mcp.ui import server
from cwm_mcp.ui.models import Overview
from cwm_mcp.ui.open_browser import open_in_browser
from cwm_mcp.ui.overview import OverviewReader
from cwm_mcp.ui.time_saved import time_saved
from tests.cwm_mcp import homes
from tests.cwm_mcp.canned import canned_engine
from tests.cwm_mcp.ui.serving import Served, answers, sample, serving, session
from tests.support.paths import ROOT

PAGES = ["/", "/page.css", "/page.js", "/api/overview", "/api/windows/stem"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run one server for all tests of the module, which only read from it. No engine answers."""
    folder = tmp_path_factory.mktemp("ui")
    homes.fill(folder)
    with serving(folder, "--no-browser", CWM_HOME=str(folder), CWM_VLLM_URL="http://127.0.0.1:9") as running:
        yield running


@pytest.fixture
def browser(served: Served) -> Iterator[httpx.Client]:
    """Return a client that has opened the printed address."""
    with httpx.Client(base_url=served.origin, timeout=20) as client:
        assert client.get(served.url).status_code == 303
        yield client


# --- who is let in ---


def test_the_printed_address_becomes_a_cookie_and_leads_to_the_page(served: Served) -> None:
    with httpx.Client(timeout=20) as client:
        admitted = client.get(served.url)
        assert (admitted.status_code, admitted.headers["location"]) == (303, "/")
        cookie = admitted.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert served.token not in admitted.headers["set-cookie"]
        page = client.get(f"{served.origin}/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_an_address_that_was_followed_from_elsewhere_leads_on_from_a_page_of_ours(served: Served, site: str) -> None:
    admitted = httpx.get(served.url, headers={"Sec-Fetch-Site": site})
    assert (admitted.status_code, admitted.headers["refresh"]) == (200, "0; url=/")
    assert "set-cookie" in admitted.headers


@pytest.mark.parametrize("path", [*PAGES, "/nothing", "/page.js?token={token}"])
@pytest.mark.parametrize("cookie", [None, "cwm_ui_{port}=wrong", "cwm_ui_{port}={token}", 'cwm_ui_{port}="', "ü=1"])
def test_nothing_is_shown_without_the_cookie(served: Served, path: str, cookie: str | None) -> None:
    words = {"token": served.token, "port": str(urlsplit(served.origin).port)}
    headers = {} if cookie is None else {b"Cookie": cookie.format(**words).encode()}
    refused = httpx.get(served.origin + path.format(**words), headers=headers)
    assert refused.status_code == 401
    assert refused.text.startswith("CWM-8001: ")
    assert refused.text.count("\n") == 1


@pytest.mark.parametrize("token", ["", "wrong", "%FF%00", "t" * 4000])
def test_a_wrong_token_is_refused_even_beside_the_cookie(browser: httpx.Client, token: str) -> None:
    refused = browser.get(f"/?token={token}")
    assert refused.status_code == 403
    assert "set-cookie" not in refused.headers


def test_each_start_has_secrets_of_its_own(filled: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--no-browser") as one, serving(tmp_path, "--no-browser") as other:
        assert one.token != other.token
        assert len(one.token) >= 32
        assert httpx.get(f"{other.origin}/?token={one.token}").status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
@pytest.mark.parametrize("path", ["/api/overview", "/?token={token}"])
def test_another_host_is_refused_with_all_secrets_shown(
    served: Served, browser: httpx.Client, host: str, path: str
) -> None:
    port = urlsplit(served.origin).port
    refused = browser.get(path.format(token=served.token), headers={"Host": host.format(port=port)})
    assert refused.status_code == 421
    assert "set-cookie" not in refused.headers


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
def test_another_origin_is_refused(served: Served, browser: httpx.Client, origin: str) -> None:
    port = urlsplit(served.origin).port
    assert browser.get("/api/overview", headers={"Origin": origin.format(port=port)}).status_code == 403
    assert browser.get("/api/overview", headers={"Origin": served.origin}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/api/overview", "/api/windows/stem"])
def test_there_is_no_method_but_get(browser: httpx.Client, method: str, path: str) -> None:
    refused = browser.request(method, path)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")


def test_every_answer_has_the_headers_that_bind_the_browser(served: Served, browser: httpx.Client) -> None:
    asked = [browser.get(path) for path in [*PAGES, "/nothing", "/?token=wrong"]]
    refused = [httpx.get(f"{served.origin}/"), httpx.get(served.url), browser.post("/")]
    for answer in [*asked, *refused]:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"https?:|\*|data:", policy)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "path", ["/../server.py", "/%2e%2e/server.py", "/static/index.html", "/index.html", "//etc/passwd"]
)
def test_no_path_reaches_the_disk(served: Served, browser: httpx.Client, path: str) -> None:
    # As it stands: httpx would tidy it up.
    raw = http.client.HTTPConnection(urlsplit(served.origin).netloc, timeout=20)
    raw.request("GET", path, headers={"Cookie": "; ".join(f"{each.name}={each.value}" for each in browser.cookies.jar)})
    assert raw.getresponse().status == 404
    raw.close()


def test_the_token_is_printed_once_and_never_logged(filled: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--no-browser", CWM_LOG_LEVEL="DEBUG") as served:
        for address in (served.url, f"{served.origin}/?token=guessed-by-a-stranger"):
            httpx.get(address, headers={"Referer": served.url})
            httpx.get(address, headers={"Host": "evil.example"})
    said = served.log.read_text()
    assert served.token not in said
    assert "guessed-by-a-stranger" not in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "127.0.0.2", "localhost", "192.0.2.1"])
def test_no_other_address_is_listened_on(settings: Settings, host: str) -> None:
    with pytest.raises(CWMError, match=r"127\.0\.0\.1 alone") as refused:
        server.run(settings, Address(host, 0), lambda url: pytest.fail("it listens"))
    assert refused.value.code is Code.NOT_ALLOWED


def test_a_port_that_is_taken_is_one_line(served: Served) -> None:
    port = str(urlsplit(served.origin).port)
    command = [sys.executable, "-m", "cwm_mcp.cli", "ui", "--no-browser", "--port", port]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("CWM-1003: ")


def test_the_browsers_command_line_shows_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with open_in_browser("http://127.0.0.1:1/?token=secret"):
        limit = time.monotonic() + 10
        while not opened:
            assert time.monotonic() < limit
            time.sleep(0.01)
        file = Path(urlsplit(opened[0]).path)
        assert "url=http://127.0.0.1:1/?token=secret" in file.read_text()
        assert file.parent.stat().st_mode & 0o077 == 0
    assert "secret" not in opened[0]
    assert not file.exists()


def test_other_commands_don_t_wait_for_the_server_s_library() -> None:
    code = "import sys, cwm_mcp.cli, cwm_mcp.cli.commands.ui; print({'starlette', 'uvicorn'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "set()", ran.stderr


# --- what is answered ---


def test_without_an_engine_the_catalog_speaks_and_the_rest_is_unknown(browser: httpx.Client) -> None:
    told = msgspec.json.decode(browser.get("/api/overview").content, type=Overview)
    assert told.engine_up is False
    assert told.windows is not None
    assert [(each.name, each.under, each.size_bytes, each.unique_bytes) for each in told.windows] == [
        ("stem", None, 3 * homes.CHUNK_BYTES, 0),
        ("branch", "stem", 5 * homes.CHUNK_BYTES, 2 * homes.CHUNK_BYTES),
        ("stem-for-alice", "stem", 3 * homes.CHUNK_BYTES, 0),
    ]
    assert told.sessions is not None
    assert [(each.session_id, each.cached_tokens) for each in told.sessions] == [("talk", None)]
    assert told.cache is not None
    disk = told.cache.kv_store.tiers["disk"]
    assert disk is not None
    assert (disk.blocks, disk.bytes, disk.limit_bytes) == (5, 5 * homes.CHUNK_BYTES, None)
    assert told.cache.kv_store.tiers["cpu"] is None
    assert set(msgspec.structs.asdict(told.saved).values()) == {None}
    assert told.auto_freeze is None
    assert told.health is not None
    assert {each.name for each in told.health.components} == {"vllm", "engine", "catalog", "cpu", "disk", "redis"}
    assert told.faults == []


def test_one_window_is_told_with_its_times_and_lineage(browser: httpx.Client) -> None:
    told = browser.get("/api/windows/stem").json()
    assert told["lineage"] == {"parent": None, "children": ["branch", "stem-for-alice"]}
    assert told["timestamps"]["created_at"] == "2026-01-01T00:00:00.000Z"


@pytest.mark.parametrize(("name", "status", "code"), [("none", 404, 2002), ("a%20b", 400, 1002)])
def test_a_window_that_is_none_is_told_with_the_contracts_code(
    browser: httpx.Client, name: str, status: int, code: int
) -> None:
    told = browser.get(f"/api/windows/{name}")
    assert told.status_code == status
    assert told.text.startswith(f"CWM-{code}: ")


async def test_with_an_engine_its_own_figures_are_told(filled: Path, settings: Settings) -> None:
    canned = answers(settings, session(1, "a title"), session(2))
    async with canned_engine(settings, **canned):
        reader = OverviewReader(settings)
        told = await reader.read()
        await reader.aclose()
    assert told.engine_up is True
    assert told.sessions is not None
    assert [each.title for each in told.sessions] == ["a title", None]
    assert told.saved.by_tier == {"disk": 6000, "cpu": 1680}
    assert (told.saved.tokens, told.saved.load_seconds) == (7680, 1.5)
    assert told.saved.seconds == pytest.approx(7680 / 1200 - 1.5)
    assert told.auto_freeze is not None
    assert told.auto_freeze.next_action is not None
    assert told.faults == []


async def test_a_part_that_fails_hides_no_other_and_is_told(filled: Path, settings: Settings) -> None:
    broken = CWMError(Code.CORRUPT, "the list is damaged; run cwm verify")
    async with canned_engine(settings, **{**answers(settings, session(1)), "LIST": broken}):
        reader = OverviewReader(settings)
        told = await reader.read()
        await reader.aclose()
    assert told.windows is None
    assert told.sessions is not None
    assert told.faults == ["CWM-4004: the list is damaged; run cwm verify"]


async def test_a_thousand_windows_and_two_hundred_sessions_are_told_and_kept(home: Path, settings: Settings) -> None:
    catalog = SqliteCatalog.open(settings.catalog_path)
    for number in range(1000):
        new = homes.new_window(f"w{number}", f"s{number % 200}", 20, parent=f"w{number - 1}" if number % 5 else None)
        catalog.commit_window(replace(new, created_at=Micros(homes.NEW_YEAR + number)))
    catalog.close()
    reader = OverviewReader(settings)
    begun = time.process_time()
    first = await reader.read()
    first_s = time.process_time() - begun
    begun = time.process_time()
    await reader.read()
    again_s = time.process_time() - begun
    await reader.aclose()
    assert first.windows is not None
    assert first.sessions is not None
    assert (len(first.windows), len(first.sessions)) == (1000, 200)
    assert again_s < first_s, "what did not change is not read again"


# --- figures ---


def test_seconds_are_told_only_where_the_engine_tells_its_rate() -> None:
    rate = Metric(**sample("cwm_prefill_tokens_per_second", 1200))
    samples = [Metric(**sample("cwm_loaded_tokens_total", 7680, tier="cpu"))]
    assert time_saved([*samples, rate]).seconds is None  # no engine's counters: they always come together
    samples += [Metric(**sample("cwm_missed_tokens_total", 0)), Metric(**sample("cwm_load_seconds_sum", 1.5))]
    saved = time_saved([*samples, rate])
    assert saved.prefill_tokens_per_second == 1200
    assert saved.seconds == pytest.approx(7680 / 1200 - 1.5)
    assert time_saved(samples).seconds is None
    assert time_saved([*samples, Metric(**sample("cwm_prefill_tokens_per_second", 0))]).seconds is None


def test_the_page_names_nothing_from_elsewhere() -> None:
    static = Path(server.__file__).parent / "static"
    for file in static.iterdir():
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|//[a-z]+\.|innerHTML|insertAdjacent|document\.write|<style|onclick=", text), (
            file
        )
    assert "<script>" not in (static / "index.html").read_text()
    assert json.dumps(sorted(file.suffix for file in static.iterdir())).count(".js") == 11
