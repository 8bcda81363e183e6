"""Hellos as clients say them, byte for byte, to a server process; and which conversation is then "current"."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import FreezeArgs
from cwm_connector.settings import Settings
from tests.cwm_mcp.canned import FROZEN, canned_engine_on_a_thread
from tests.support.paths import ROOT

CODEX = {"threadId": "thread-1", "sessionId": "family-1", "windowId": "thread-1:0", "progressToken": 1}
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "claude-code", "version": "2"},
    "io.modelcontextprotocol/clientCapabilities": {"roots": {"listChanged": True}, "elicitation": {"form": {}}},
}


class Server:
    """A server process that is spoken to in lines of JSON-RPC."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def tell(self, method: str, **params: Any) -> None:
        self._write({"jsonrpc": "2.0", "method": method, "params": params})

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._write({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
        assert self._process.stdout is not None
        while True:
            message: dict[str, Any] = json.loads(self._process.stdout.readline())
            if message.get("id") == 7:
                return message

    def call(self, tool: str, meta: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        params: dict[str, Any] = {"name": tool, "arguments": arguments}
        result: dict[str, Any] = self.ask("tools/call", **params, **({"_meta": meta} if meta else {}))["result"]
        return result

    def hello(self, version: str, client: str, capabilities: dict[str, Any] | None = None) -> str:
        answer = self.ask(
            "initialize",
            protocolVersion=version,
            capabilities=capabilities or {},
            clientInfo={"name": client, "version": "1"},
        )
        self.tell("notifications/initialized")
        agreed: str = answer["result"]["protocolVersion"]
        return agreed

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(message)}\n")
        self._process.stdin.flush()


@contextmanager
def serving(**variables: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cwm_mcp"],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
def test_every_older_version_is_agreed_on_and_works_without_any_capability(filled: Path, version: str) -> None:
    with serving() as server:
        assert server.hello(version, "@cline/core") == version
        assert len(server.ask("tools/list")["result"]["tools"]) == 12
        assert "stem" in server.call("window_list")["content"][0]["text"]
        refused = server.call("window_delete", window_name="stem")
    assert refused["isError"] and refused["content"][0]["text"].startswith("CWM-5001: ")


def test_a_server_that_is_asked_again_in_the_other_era_answers_both(filled: Path) -> None:
    """Claude Code gives a slow starter an `initialize` and goes on in the newer era."""
    with serving() as server:
        assert "result" in server.ask("server/discover", _meta=MODERN)
        assert "stem" in server.call("window_list", MODERN)["content"][0]["text"]
    with serving() as server:
        server.hello("2025-11-25", "claude-code")
        assert "stem" in server.call("window_list")["content"][0]["text"]
        assert server.hello("2025-11-25", "claude-code") == "2025-11-25"
        assert "stem" in server.call("window_list")["content"][0]["text"]


@pytest.mark.parametrize(
    ("client", "meta", "variables", "session"),
    [
        ("codex-mcp-client", CODEX, {}, "thread-1"),
        ("codex-mcp-client", {"x-codex-turn-metadata": {"session_id": "f", "thread_id": "thread-2"}}, {}, "thread-2"),
        ("codex-mcp-client", CODEX, {"CLAUDE_CODE_SESSION_ID": "outer"}, "thread-1"),
        ("claude-code", None, {"CLAUDE_CODE_SESSION_ID": "claude-1"}, "claude-1"),
        ("claude-code", None, {"CLAUDE_CODE_SESSION_ID": "c-1", "QWEN_CODE_SESSION_ID": "outer"}, "c-1"),
        ("qwen-cli-mcp-client-cwm", None, {"QWEN_CODE_SESSION_ID": "q-1", "CLAUDE_CODE_SESSION_ID": "outer"}, "q-1"),
        ("some-new-client", {"sessionId": "new-1"}, {}, "new-1"),
    ],
)
def test_current_is_the_conversation_of_the_client_that_calls(
    settings: Settings, client: str, meta: dict[str, Any] | None, variables: dict[str, str], session: str
) -> None:
    with canned_engine_on_a_thread(settings, FREEZE=FROZEN) as engine, serving(**variables) as server:
        server.hello("2025-06-18", client)
        result = server.call("window_freeze", meta, session_id="current", window_name="w")
    assert not result.get("isError"), result
    (args,) = engine.asked
    assert isinstance(args, FreezeArgs) and args.session_id == session


@pytest.mark.parametrize("client", ["opencode", "@cline/core"])
def test_the_conversation_of_an_outer_program_is_not_taken_for_the_clients_own(home: Path, client: str) -> None:
    with serving(CLAUDE_CODE_SESSION_ID="outer") as server:
        server.hello("2025-11-25", client)
        result = server.call("window_freeze", session_id="current", window_name="w")
    assert result["content"][0]["text"] == (
        f"CWM-1001: {client} does not say which session is the current one; pass its id, session_list shows them"
    )


def test_a_current_session_that_never_reached_the_engine_says_why(settings: Settings) -> None:
    unknown = CWMError(Code.SESSION_NOT_FOUND, "no session 'q-1'; session_list shows them", session_id="q-1")
    with canned_engine_on_a_thread(settings, FREEZE=unknown), serving(QWEN_CODE_SESSION_ID="q-1") as server:
        server.hello("2025-11-25", "qwen-cli-mcp-client-cwm")
        result = server.call("window_freeze", session_id="current", window_name="w")
    text = result["content"][0]["text"]
    assert text.startswith("CWM-2001: the current session is q-1, but ") and "session_list" in text
