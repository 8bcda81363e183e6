"""The Claude Code plugin: what it declares, and the real Claude Code with it.

The model is scripted, because a small one calls no tools; Claude Code, the plugin's hooks, its MCP server and the
engine in miniature with its socket are real.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from cwm_mcp.server.tools import TOOLS
from tests.cwm_mcp.test_hooks import engine_at, windows
from tests.support.claude_code import PLUGIN, ClaudeCode, against
from tests.support.clients.npm import INSTALL_S
from tests.support.engine import ROOT

real_claude_code = pytest.mark.timeout(INSTALL_S + 120)
HOOKS: dict[str, Any] = json.loads((PLUGIN / "hooks" / "hooks.json").read_text())["hooks"]
SERVER: dict[str, Any] = json.loads((PLUGIN / ".mcp.json").read_text())["mcpServers"]["cwm"]
COMMANDS = sorted((PLUGIN / "commands").iterdir())
PREFIX = "mcp__plugin_cwm_cwm__"


def hook_commands() -> list[str]:
    return [hook["command"] for groups in HOOKS.values() for group in groups for hook in group["hooks"]]


@pytest.mark.parametrize("event", HOOKS)
def test_a_hook_is_a_shell_line_that_runs_with_the_project_s_python(home: Path, event: str) -> None:
    (group,) = HOOKS[event]
    (hook,) = group["hooks"]
    told = {"hook_event_name": event, "session_id": "s", "source": "resume", "tool_input": {"session_id": "current"}}
    ran = subprocess.run(
        ["sh", "-c", hook["command"]],
        # A project of the user's that has a module by one of our names.
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "CWM_PYTHON": sys.executable},
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)


def test_a_module_in_the_user_s_folder_is_not_taken_for_ours(home: Path) -> None:
    (home / "json.py").write_text("raise SystemExit('the folder is on the path')")
    for command in hook_commands():
        ran = subprocess.run(
            ["sh", "-c", command],
            cwd=home,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CWM_PYTHON": sys.executable},
            input="{}",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
    assert "-P" in SERVER["args"]


def test_every_tool_that_takes_a_session_passes_the_hook_and_no_other_does() -> None:
    matcher = re.compile(HOOKS["PreToolUse"][0]["matcher"])
    taking = {tool.name for tool in TOOLS if {"session_id", "new_session_id"} & set(tool.parameters["properties"])}
    passing = {tool.name for tool in TOOLS if matcher.fullmatch(PREFIX + tool.name)}
    assert passing == taking


def test_commands_may_use_the_tools_that_they_name_and_these_exist() -> None:
    assert [command.stem for command in COMMANDS] == ["freeze", "thaw", "windows"]
    for command in COMMANDS:
        _, head, body = command.read_text().split("---\n", 2)
        (allowed,) = re.findall(r"^allowed-tools: (.*)$", head, re.MULTILINE)
        tools = {name.removeprefix(PREFIX) for name in allowed.split(", ")}
        assert tools == set(re.findall(r"`(window_\w+)`", body)) - {"window_name"}
        assert tools <= {tool.name for tool in TOOLS}


async def test_its_server_is_the_mcp_server(home: Path) -> None:
    server = StdioServerParameters(
        command=SERVER["command"].replace("${CWM_PYTHON:-python3}", sys.executable),
        args=SERVER["args"],
        env={"CWM_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home,
    )
    async with Client(stdio_client(server)) as client:
        assert len((await client.list_tools()).tools) == len(TOOLS)


def test_its_tools_are_there_from_the_first_request_on() -> None:
    # Tools that come later would change the prompt's beginning, and with it every block of the prefix.
    assert SERVER["alwaysLoad"] is True


# --- with the real Claude Code ---


@pytest.fixture
def claude(home: Path, tmp_path: Path) -> ClaudeCode:
    return ClaudeCode(tmp_path, {"CWM_HOME": str(home), "CWM_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)})


@real_claude_code
async def test_claude_code_finds_nothing_wrong_with_it(claude: ClaudeCode) -> None:
    assert "passed" in await claude.run("plugin", "validate", str(PLUGIN), "--strict")


@asynccontextmanager
async def scripted_model(*turns: dict[str, Any]) -> AsyncIterator[str]:
    """Serve a model that says these content blocks one after another, then "done". Yield its address."""
    script = list(turns)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if length := re.search(r"content-length: (\d+)", head):
            await reader.readexactly(int(length[1]))
        block = {"type": "text", "text": "done"}
        if head.startswith("post /v1/messages?") and script:
            block = script.pop(0)
        body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in _stream(block))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body.encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())


def _stream(block: dict[str, Any]) -> Sequence[dict[str, Any]]:
    tool = block["type"] == "tool_use"
    begun: dict[str, Any] = {**block, "input": {}} if tool else {**block, "text": ""}
    delta = {"type": "text_delta", "text": block.get("text")}
    if tool:
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    message: dict[str, Any] = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
    }
    return (
        {"type": "message_start", "message": {**message, "usage": {"input_tokens": 9, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": begun},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use" if tool else "end_turn"},
            "usage": {"output_tokens": 3},
        },
        {"type": "message_stop"},
    )


@real_claude_code
async def test_current_is_the_session_that_claude_code_is_in_even_if_the_server_knows_an_older_one(
    home: Path, claude: ClaudeCode
) -> None:
    stale = claude.home / "plugin"
    shutil.copytree(PLUGIN, stale)
    declared = {"mcpServers": {"cwm": {**SERVER, "env": {"CLAUDE_CODE_SESSION_ID": "older-one"}}}}
    (stale / ".mcp.json").write_text(json.dumps(declared))
    session = "8b1f9c1e-6f0a-4a0e-9a53-0d5f3a2b7c11"
    freeze = {
        "type": "tool_use",
        "id": "t1",
        "name": f"{PREFIX}window_freeze",
        "input": {"session_id": "current", "window_name": "kickoff"},
    }
    async with engine_at(home) as engine, scripted_model(freeze) as url:
        await engine.serve(range(41), session)
        await engine.serve(range(500, 541), "older-one")
        here = ClaudeCode(claude.home, {**claude.variables, **against(url, "m")})
        await here.run(
            *("-p", "freeze this", "--session-id", session, "--plugin-dir", str(stale), "--tools", ""),
            *("--allowedTools", f"{PREFIX}window_freeze"),
        )
        frozen = await windows(engine)
    assert frozen["kickoff"]["session_id"] == session
    assert frozen["end-8b1f9c1e-g1"]["session_id"] == session, "its end froze nothing"


@real_claude_code
async def test_without_an_engine_claude_code_goes_on_as_ever(claude: ClaudeCode) -> None:
    async with scripted_model() as url:
        here = ClaudeCode(claude.home, {**claude.variables, **against(url, "m")})
        assert (await here.run("-p", "hello", "--plugin-dir", str(PLUGIN), "--tools", "")).strip() == "done"
