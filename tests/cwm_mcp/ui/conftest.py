"""The page in a real browser, over a filled home with an engine and vLLM's own HTTP server."""

import json
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from cwm_connector.catalog.results import AsRecorded, window_status
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.control.thread import ControlThread
from cwm_connector.core.types import Micros
from cwm_connector.protocol.calls import Op
from cwm_connector.settings import Settings
from tests.cwm_mcp import homes
from tests.cwm_mcp.canned import CannedEngine, canned_engine
from tests.cwm_mcp.ui.browser import Page, chromium, new_page
from tests.cwm_mcp.ui.serving import MARKUP, VLLM_METRICS, Served, answers, serving, session

READ: Final = "document.querySelectorAll('#window-rows tr[data-name]').length > 0"


TOKENS: Final = {"window_name": "stem", "token_ids": array("i", range(778)).tobytes()}
HEADS: Final = {"head": "main", "head_reason": "it spoke last", "head_names": ["main", "sub agent's"]}


@dataclass(slots=True)
class Shown:
    page: Page
    engine: CannedEngine
    settings: Settings
    served: Served
    stop_engine: Any

    def relist_windows(self) -> None:
        """Make the engine list the windows that the catalog has now."""
        self.engine.answers[Op.LIST] = answers(self.settings)["LIST"]


@pytest.fixture(autouse=True)
def needs_a_browser() -> None:
    chromium()


def words_of(ids: Sequence[int]) -> str:
    """Return `t7` for token 7, and markup for token 0."""
    return " ".join(f"t{number}" if number else MARKUP for number in ids)


@contextmanager
def vllm(text_of: Callable[[Sequence[int]], str] = words_of) -> Iterator[str]:
    """Serve vLLM's metrics, and text for token ids. Yield the address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(VLLM_METRICS.encode())

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"prompt": text_of(asked["tokens"])}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def shown(filled: Path, settings: Settings, tmp_path: Path) -> Iterator[Shown]:
    """Open the page over a filled home with an engine.

    Check after each test that there was no error, no violation of the policy, and no request to another host.
    """
    catalog = SqliteCatalog.open(settings.catalog_path)
    catalog.tag_window("branch", [], [], MARKUP, Micros(homes.NEW_YEAR))
    stem, chunks = catalog.window("stem"), catalog.chunks_of("stem")
    status = window_status(stem, chunks, catalog.children("stem"), AsRecorded(chunks))
    catalog.close()
    canned = {
        **answers(settings, session(1, MARKUP, **HEADS), session(2, "Plain talk", state="thawed")),
        "STATUS": status,
        "TOKENS": TOKENS,
    }
    thread = ControlThread()
    thread.start()
    listening = canned_engine(settings, **canned)
    engine = thread.submit(listening.__aenter__()).result(10)

    def stop_engine() -> None:
        thread.submit(listening.__aexit__(None, None, None)).result(10)

    with vllm() as url, serving(tmp_path, "--no-browser", CWM_VLLM_URL=url) as served, new_page(tmp_path / "p") as page:
        page.look()
        page.open(served.url)
        page.until(READ)
        yield Shown(page, engine, settings, served, stop_engine)
        page.value("0")  # takes in what was said meanwhile
        assert page.faults == []
        hosts = {urlsplit(each).netloc for each in page.requests}
        assert hosts == {urlsplit(served.origin).netloc}
    thread.stop()
