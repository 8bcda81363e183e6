"""Claude Code's conversation outlives its engine: frozen by the plugin's hooks, thawed after kill -9, resumed.

The real Claude Code where npm offers it; in any case a client that sends what it sends.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx
import pytest

from tests.support.claude_code import PLUGIN, ClaudeCode, against
from tests.support.clients.base import Said
from tests.support.clients.npm import INSTALL_S
from tests.support.engine import ROOT, SERVED_NAME, Engine
from tests.support.mcp_client import ToolError, Tools, mcp_client

Client = TypeVar("Client")
SECRET = "sk-s3cret"
SESSION = "3d0c1d5e-55aa-4b0c-8a3e-7f6f0f1d2e3c"
QUESTION = "Which of these lines comes last? " + " ".join(
    f"line {number}: the {colour} door is {state}."
    for number, (colour, state) in enumerate(zip(["red", "green", "blue"] * 20, ["open", "shut"] * 30, strict=True))
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One request as client and engine counted it."""

    said: Said
    local_hits: int
    restored: int


async def counted(engine: Engine, turn: Callable[[], Awaitable[Said]]) -> Turn:
    """Runs a turn of exactly one request, and waits until vLLM's counters show it."""
    before = await engine.api.counters()
    said = await turn()
    deadline = time.monotonic() + 10
    while (after := await engine.api.counters()).prompt_tokens < before.prompt_tokens + said.prompt_tokens:
        assert time.monotonic() < deadline, "vLLM's counters do not show the turn"
        await asyncio.sleep(0.02)
    assert after.prompt_tokens - before.prompt_tokens == said.prompt_tokens, "it was not one request"
    return Turn(said, after.local_hits - before.local_hits, after.external_hits - before.external_hits)


async def session_of(cwm: Tools, session_id: str) -> dict[str, Any]:
    listed = (await cwm.call("session_list"))["sessions"]
    (found,) = [each for each in listed if each["session_id"] == session_id]
    return dict(found)


async def thawed(engine: Engine, window_name: str) -> dict[str, Any]:
    async with mcp_client(engine) as cwm:
        result = await cwm.call("window_thaw", window_name=window_name)
    assert not result["partial"], result["warning"]
    return result


async def window_once_there(cwm: Tools, name: str, cause: "asyncio.Task[str]") -> dict[str, Any]:
    """Return the window's status as soon as there is one, and after the end of its cause at the latest."""
    while not cause.done():
        with suppress(ToolError):
            return await cwm.call("window_status", window_name=name)
        await asyncio.sleep(0.2)
    return await cwm.call("window_status", window_name=name)


class RawClient:
    """Sends the headers and the shape of body that Claude Code sends.

    Its system prompt differs from the real one's in this module, so that their conversations share no block.
    """

    def __init__(self, engine: Engine, session_id: str, agent_id: str | None = None) -> None:
        self._engine = engine
        self._session_id = session_id
        agent = {} if agent_id is None else {"x-claude-code-agent-id": agent_id}
        self._headers = {"x-api-key": SECRET, "X-Claude-Code-Session-Id": session_id, **agent}
        self.messages: list[dict[str, str]] = []

    async def say(self, words: str) -> Said:
        self.messages.append({"role": "user", "content": words})
        body = {"model": SERVED_NAME, "max_tokens": 40, "system": "short and helpful", "messages": self.messages}
        async with httpx.AsyncClient(base_url=self._engine.url, timeout=120, trust_env=False) as client:
            answer = await client.post("/v1/messages?beta=true", json=body, headers=self._headers)
        told = answer.raise_for_status().json()
        text, usage = told["content"][0]["text"], told["usage"]
        self.messages.append({"role": "assistant", "content": text})
        counts = [usage.get(name) or 0 for name in ("input_tokens", "cache_creation_input_tokens")]
        cached = usage.get("cache_read_input_tokens") or 0
        return Said(self._session_id, text, cached, sum(counts) + cached)


async def hook(engine: Engine, event: str, **told: str) -> dict[str, Any]:
    """Runs the plugin's hook as Claude Code would."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cwm_mcp.hooks"),
        cwd=ROOT,
        env={"CWM_HOME": str(engine.home)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps({"hook_event_name": event, **told}).encode())
    assert process.returncode == 0
    return dict(json.loads(out))


@dataclass(frozen=True, slots=True)
class Frozen(Generic[Client]):
    """A client's conversation of two turns, frozen by a hook."""

    client: Client
    second: Said
    window: str


async def frozen_before_a_compaction(engine: Engine) -> Frozen[RawClient]:
    """Talk as Claude Code does, and run the hook that comes before a compaction."""
    block = await engine.api.block_tokens()
    main, agent = RawClient(engine, SESSION), RawClient(engine, SESSION, "a1b2c3d4")
    await main.say(QUESTION)
    second = await main.say("And which one before that?")
    await agent.say("Summarise: " + QUESTION[200:1400])
    async with mcp_client(engine) as cwm:
        listed = await session_of(cwm, SESSION)
        assert "CWM: froze" in (await hook(engine, "PreCompact", session_id=SESSION, trigger="auto"))["systemMessage"]
        window = await cwm.call("window_status", window_name="compact-3d0c1d5e-g1")
    assert listed["heads"] == 2 and listed["title"].startswith("Which of these lines comes last? line 0")
    assert listed["token_count"] >= second.prompt_tokens and listed["cached_tokens"] >= second.prompt_tokens - block
    assert window["token_count"] == listed["token_count"], "the subagent's conversation was frozen, not the session's"
    return Frozen(main, second, "compact-3d0c1d5e-g1")


@pytest.mark.survives(prepare=frozen_before_a_compaction)
async def test_a_client_with_claude_code_s_headers_goes_on_after_a_kill(
    engine: Engine, before: Frozen[RawClient]
) -> None:
    block = await engine.api.block_tokens()
    result = await thawed(engine, before.window)
    assert result["session_id"] == SESSION
    resumed = await counted(engine, lambda: before.client.say("Thank you."))
    assert resumed.said.cache_read_tokens == resumed.restored >= before.second.prompt_tokens // block * block > 0
    assert resumed.local_hits == 0
    log = engine.log.read_text(errors="replace")
    assert "door" not in log and SECRET not in log and SESSION not in log


async def test_a_client_that_says_nothing_has_a_session_with_a_title_that_can_be_frozen(engine: Engine) -> None:
    talk = [{"role": "user", "content": f"Silently: {QUESTION}"}]
    async with httpx.AsyncClient(base_url=engine.url, timeout=120, trust_env=False) as client:
        for words in ("And the first?", None):
            answer = await client.post(
                "/v1/chat/completions", json={"model": SERVED_NAME, "max_tokens": 40, "messages": talk}
            )
            said = answer.raise_for_status().json()
            talk.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
            talk.append({"role": "user", "content": words or ""})
    async with mcp_client(engine) as cwm:
        listed = (await cwm.call("session_list"))["sessions"]
        (found,) = [each for each in listed if (each["title"] or "").startswith("Silently: Which of these")]
        frozen = await cwm.call("window_freeze", session_id=found["session_id"], window_name="silent")
    assert found["session_id"].startswith("anon-") and found["heads"] == 1
    assert frozen["token_count"] == found["token_count"] >= said["usage"]["prompt_tokens"]


# The hooks alone: the tools' schemas would take a third of the small model's context.
ONLY_HOOKS = ("--plugin-dir", str(PLUGIN), "--strict-mcp-config")


async def frozen_at_the_session_s_end(engine: Engine) -> Frozen[ClaudeCode]:
    """Talk with the real Claude Code, whose hooks freeze the session whenever it ends."""
    variables = {"CWM_HOME": str(engine.home), "CWM_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    home = engine.folder / "claude-code"
    home.mkdir()
    claude = ClaudeCode(home, {**variables, **against(engine.url, SERVED_NAME)})
    first = await claude.say(QUESTION, *ONLY_HOOKS)
    second = await claude.say("And which one before that?", *ONLY_HOOKS, "--resume", first.session_id)
    short = first.session_id[:8]
    async with mcp_client(engine) as cwm:
        listed = await session_of(cwm, first.session_id)
        ended = await cwm.call("window_status", window_name=f"end-{short}-g2")
    assert listed["title"].startswith("Which of these lines comes last? line 0")
    assert ended["token_count"] == listed["token_count"] >= second.prompt_tokens
    return Frozen(claude, second, f"end-{short}-g2")


@pytest.mark.timeout(INSTALL_S + 840)
@pytest.mark.survives(prepare=frozen_at_the_session_s_end)
async def test_the_real_claude_code_resumes_after_a_kill_what_its_hooks_froze(
    engine: Engine, before: Frozen[ClaudeCode]
) -> None:
    block = await engine.api.block_tokens()
    claude, session_id = before.client, before.second.session_id
    resume = (*ONLY_HOOKS, "--resume", session_id)
    result = await thawed(engine, before.window)
    assert result["session_id"] == session_id
    third = await counted(engine, lambda: claude.say("Thank you.", *resume))
    assert third.said.session_id == session_id
    assert third.said.cache_read_tokens == third.restored >= before.second.prompt_tokens // block * block > 0
    assert third.local_hits == 0
    # Whether the small model manages to sum up is its own affair and may take it minutes: the hook comes before.
    async with mcp_client(engine) as cwm, claude.running("-p", "/compact", *resume) as compacting:
        kept = await window_once_there(cwm, f"compact-{session_id[:8]}-g1", compacting)
    assert kept["token_count"] >= third.said.prompt_tokens, "the compaction lost what its hook should have kept"
