"""The middleware behind a real LiteLLM proxy: which identity comes through with which setting.

The proxy stands before a server that records what arrives. What names the conversation there is read as vLLM's own
server would.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from cwm_connector.middleware.body import decode_body
from cwm_connector.middleware.identities import read_speaker
from tests.support.clients.litellm_proxy import FORWARDING, KEY, START_S, proxy

pytestmark = pytest.mark.timeout(2 * START_S + 120)

ANSWER = {
    "id": "one",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 2},
    },
}


class _Recorder(BaseHTTPRequestHandler):
    last: tuple[Mapping[str, str], bytes] = ({}, b"")

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).last = ({name.lower(): value for name, value in self.headers.items()}, body)
        self._answer(ANSWER)

    def _answer(self, content: Mapping[str, Any]) -> None:
        answer = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def recorder() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def arrived() -> tuple[str | None, list[dict[str, Any]]]:
    """Return what names the conversation of the last request, and its messages."""
    headers, content = _Recorder.last
    speaker = read_speaker(headers, decode_body(content))
    return None if speaker is None else speaker.session_id, json.loads(content)["messages"]


def named(url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
    """Return what names the conversation behind the proxy."""
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
    known = {"authorization": f"Bearer {KEY}", **headers}
    sent = httpx.post(f"{url}/v1/chat/completions", json=chat, headers=known, timeout=60, trust_env=False)
    assert sent.is_success, sent.text
    return arrived()[0]


HEADERS: Final = {
    "Claude Code": {"x-claude-code-session-id": "claude-1"},
    "Codex": {"thread-id": "codex-1", "session-id": "family"},
    "Codex, its own x-header": {"thread-id": "codex-2", "x-codex-turn-metadata": '{"thread_id":"codex-2"}'},
    "Open WebUI": {"x-openwebui-chat-id": "chat-1"},
    "opencode": {"x-session-affinity": "ses_1", "x-session-id": "ses_1"},
    "any client": {"x-session-id": "mine"},
}
BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "session_id": {"session_id": "body-1"},
    "prompt_cache_key": {"prompt_cache_key": "family-1"},
    "the metadata of Claude Code": {"metadata": {"user_id": '{"session_id":"meta-1"}'}},
}


def test_which_identity_comes_through_by_default_and_with_the_setting(tmp_path: Path) -> None:
    seen: dict[str, dict[str, str | None]] = {}
    with recorder() as url:
        for label, general in (("default", {}), ("forwarding", FORWARDING)):
            with proxy(tmp_path, url, "m", general) as front:
                seen[label] = {name: named(front, headers, {}) for name, headers in HEADERS.items()}
                seen[label] |= {name: named(front, {}, body) for name, body in BODIES.items()}
    body = {"session_id": "body-1", "prompt_cache_key": "family-1", "the metadata of Claude Code": None}
    assert seen["default"] == dict.fromkeys(HEADERS) | body
    assert seen["forwarding"] == {
        "Claude Code": "claude-1",
        "Codex": None,
        "Codex, its own x-header": "codex-2",
        "Open WebUI": "chat-1",
        "opencode": "ses_1",
        "any client": "mine",
        **body,
    }
