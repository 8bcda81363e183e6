"""The hooks as Claude Code runs them: a process with a JSON object on stdin, with a miniature engine or without one."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.control.server import ControlServer
from cwm_connector.core.names import legal_session_id
from cwm_connector.operations.auto_freeze.mark import Mark, Reason, mark_of
from cwm_connector.protocol.calls import Op
from cwm_connector.settings import Settings, load_settings
from cwm_mcp import hooks
from tests.support.miniature import Miniature
from tests.support.paths import ROOT

SESSION = "8b1f9c1e-6f0a-4a0e-9a53-0d5f3a2b7c11"
SECRET = "sk-s3cret"


async def run(event: str | bytes, *options: str, **told: Any) -> tuple[dict[str, Any], str]:
    """Return the hook's answer and what it wrote to stderr, after checking that it exited with 0."""
    text = event if isinstance(event, bytes) else json.dumps({"hook_event_name": event, **told}).encode()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *options, "-m", "cwm_mcp.hooks"),
        cwd=ROOT,
        # Strict, as stdin is in most people's locale.
        env={**os.environ, "ANTHROPIC_API_KEY": SECRET, "PYTHONIOENCODING": "utf-8:strict"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate(text)
    assert process.returncode == 0, err.decode()
    return json.loads(out), err.decode()


async def said(event: str, session_id: Any = SESSION, **told: Any) -> str:
    answer, err = await run(event, session_id=session_id, **told)
    assert err == "" and list(answer) == ["systemMessage"]
    return str(answer["systemMessage"])


@asynccontextmanager
async def engine_at(home: Path, **more: Any) -> AsyncIterator[Miniature]:
    engine = await Miniature.started(home, **more)
    server = ControlServer(Settings(home=home).socket_path, engine.operations, "small", "0")
    await server.start()
    try:
        yield engine
    finally:
        await server.close()
        engine.close()


async def windows(engine: Miniature) -> dict[str, Any]:
    return {each["name"]: each for each in (await engine.call(Op.LIST))["windows"]}


@pytest.mark.parametrize("trigger", ["manual", "auto"])
async def test_before_a_compaction_the_session_is_frozen(home: Path, trigger: str) -> None:
    async with engine_at(home) as engine:
        await engine.serve(range(41), SESSION)
        line = await said("PreCompact", trigger=trigger)
        ((name, window),) = (await windows(engine)).items()
    assert name == "compact-8b1f9c1e-g1" and line == f"CWM: froze 41 tokens as {name}"
    assert window["session_id"] == SESSION and window["tags"] == ["auto", "compact"]
    assert trigger in window["description"]
    assert mark_of(window["description"], window["tags"]) == Mark(Reason.COMPACTION, 1)  # retention knows it


async def test_every_automatic_window_has_a_name_of_its_own(home: Path) -> None:
    async with engine_at(home) as engine:
        for session in (SESSION, f"{SESSION[:8]}-begins-alike"):
            await engine.serve(range(41), session)
            for event in ("PreCompact", "PreCompact", "SessionEnd"):
                assert "froze" in await said(event, session)
        names = {name: each["session_id"] for name, each in (await windows(engine)).items()}
    assert names == {
        **{f"compact-8b1f9c1e-g{number}": SESSION for number in (1, 2)},
        **{f"compact-8b1f9c1e-g{number}": f"{SESSION[:8]}-begins-alike" for number in (3, 4)},
        "end-8b1f9c1e-g1": SESSION,
        "end-8b1f9c1e-g2": f"{SESSION[:8]}-begins-alike",
    }


async def test_a_generation_that_was_deleted_is_not_given_again_while_a_later_one_is_there(home: Path) -> None:
    async with engine_at(home) as engine:
        await engine.serve(range(41), SESSION)
        for _ in range(2):
            await said("PreCompact")
        await engine.call(Op.DELETE, window_name="compact-8b1f9c1e-g1")
        await said("PreCompact")
        assert set(await windows(engine)) == {"compact-8b1f9c1e-g2", "compact-8b1f9c1e-g3"}


async def test_hooks_at_the_same_moment_freeze_under_different_names(home: Path) -> None:
    async with engine_at(home) as engine:
        await engine.serve(range(41), SESSION)
        await asyncio.gather(*(said("PreCompact") for _ in range(3)))
        assert len(await windows(engine)) == 3


async def killed_while_it_freezes(engine: Miniature, event: str, name: str) -> None:
    """Run the hook until the engine has accepted its freeze, then kill it and wait until it is gone."""
    hook = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cwm_mcp.hooks"), cwd=ROOT, stdin=asyncio.subprocess.PIPE
    )
    assert hook.stdin is not None
    hook.stdin.write(json.dumps({"hook_event_name": event, "session_id": SESSION}).encode())
    hook.stdin.close()
    while engine.engine.freezes.status(name, "small") is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    hook.kill()
    assert await hook.wait() == -signal.SIGKILL


@pytest.mark.parametrize(("event", "name"), [("PreCompact", "compact-8b1f9c1e-g1"), ("SessionEnd", "end-8b1f9c1e-g1")])
async def test_the_engine_completes_the_freeze_of_a_hook_that_is_killed(home: Path, event: str, name: str) -> None:
    async with engine_at(home) as engine, asyncio.timeout(60):
        await engine.serve(range(41), SESSION)
        async with engine.engine.chunk_lock:  # as while another freeze takes long
            await killed_while_it_freezes(engine, event, name)
            assert (await engine.call(Op.STATUS, window_name=name))["state"] == "freezing"
        await engine.engine.freezes.wait_until_done()
        assert (await windows(engine))[name]["token_count"] == 41


async def test_a_freeze_that_takes_longer_than_a_hook_may_is_said_to_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "FREEZE_LIMIT_S", 0.1)
    monkeypatch.setattr(hooks, "_GRACE_S", 0.1)
    async with engine_at(home) as engine:
        await engine.serve(range(41), SESSION)
        async with engine.engine.chunk_lock:
            line = (await hooks.pre_compact({"session_id": SESSION}))["systemMessage"]
        await engine.engine.freezes.wait_until_done()
        assert list(await windows(engine)) == ["compact-8b1f9c1e-g1"]
    assert line.startswith("CWM: still freezing compact-8b1f9c1e-g1: ") and "window_status" in line


async def test_without_an_engine_a_hook_says_so_and_breaks_nothing(home: Path) -> None:
    for event in ("PreCompact", "SessionEnd"):
        assert "CWM-5001" in await said(event)


async def test_a_session_that_the_engine_has_never_heard_is_said_to_be_so(home: Path) -> None:
    async with engine_at(home) as engine:
        assert "CWM-2001" in await said("PreCompact")
        assert await windows(engine) == {}


async def test_an_engine_that_does_not_answer_is_given_up_in_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "FREEZE_LIMIT_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(silent, home / "engine.sock"):
        answer = await hooks.pre_compact({"session_id": SESSION})
    assert answer == {"systemMessage": "CWM: not frozen: the engine did not finish within 0.2 s; run cwm health engine"}


@pytest.mark.parametrize(
    "odd", [b"", b"{", b"[]", b"null", b'{"hook_event_name": []}', b'{"hook_event_name": "PreToolUse"}', b"\xff"]
)
async def test_no_input_breaks_a_hook_or_is_repeated(home: Path, odd: bytes) -> None:
    answer, err = await run(odd)
    assert set(answer) <= {"systemMessage"} and err == ""


@pytest.mark.parametrize("session_id", [None, 7, "", "  ", "x" * 1025])
async def test_what_is_no_session_id_reaches_no_engine(home: Path, session_id: object) -> None:
    assert await said("SessionEnd", session_id) == "CWM: not frozen: Claude Code gave no session id"


async def test_another_event_is_none_of_ours(home: Path) -> None:
    assert await run("Stop", session_id=SESSION) == ({}, "")


async def test_nothing_of_a_hook_s_input_or_environment_is_repeated(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWM_LOG_LEVEL", "DEBUG")
    words = {"session_id": SESSION, "prompt": SECRET, "tool_input": {"window_name": SECRET}, "transcript_path": SECRET}
    async with engine_at(home) as engine:
        await engine.serve(range(41), SESSION)
        heard = [await run(event, **words) for event in ("PreCompact", "SessionEnd", "PreToolUse")]
        heard.append(await run("PreCompact", **{**words, "session_id": [SECRET]}))
        frozen = await windows(engine)
    assert "froze" in str(heard) and SECRET not in str(heard)
    assert SECRET not in str(frozen)


def test_a_fault_in_a_hook_is_told_by_its_kind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(told: object) -> Any:
        raise ValueError(SECRET)

    monkeypatch.setattr(hooks, "pre_tool_use", broken)
    (line,) = hooks.answer('{"hook_event_name": "PreToolUse"}').values()
    assert "ValueError" in line and SECRET not in line


# --- a session that is resumed ----------------------------------------------------------------------------------------


async def test_a_resumed_session_is_told_what_loads_by_itself(home: Path) -> None:
    async with engine_at(home) as engine:
        for text in (range(41), range(105)):
            await engine.serve(text, SESSION)
            await said("PreCompact")
        line = await said("SessionStart", source="resume")
    assert line == "CWM: 96 tokens of window compact-8b1f9c1e-g2 load by themselves when you go on"


async def test_a_session_that_is_resumed_under_a_new_id_is_offered_the_newest_windows(home: Path) -> None:
    async with engine_at(home) as engine:
        await engine.serve(range(41), "salted", salt="s")
        await engine.call(Op.FREEZE, session_id="salted", window_name="private")
        for number in range(4):
            await engine.serve(range(41), "old")
            await engine.call(Op.FREEZE, session_id="old", window_name=f"w{number}")
        line = await said("SessionStart", source="resume")
    assert "private" not in line and "w0" not in line
    assert all(f"`cwm thaw w{number} --session {SESSION}`" in line for number in (1, 2, 3))


async def test_with_auto_thaw_off_a_resumed_session_is_told_how_to_restore(home: Path) -> None:
    async with engine_at(home, auto_thaw="off") as engine:
        await engine.serve(range(41), SESSION)
        await said("PreCompact")
        line = await said("SessionStart", source="resume")
    assert line == f"CWM: run `cwm thaw compact-8b1f9c1e-g1 --session {SESSION}` to restore 32 tokens"


@pytest.mark.parametrize("source", ["startup", "clear", "compact", None])
async def test_a_session_that_is_not_resumed_is_told_nothing(home: Path, source: str | None) -> None:
    assert await run("SessionStart", session_id=SESSION, source=source) == ({}, "")


async def test_a_resumed_session_is_told_nothing_if_there_is_nothing(home: Path) -> None:
    async with engine_at(home) as engine:
        assert await run("SessionStart", session_id=SESSION, source="resume") == ({}, "")
        await engine.serve(range(41), SESSION, salt="s")
        await engine.call(Op.FREEZE, session_id=SESSION, window_name="private")
        assert await run("SessionStart", session_id=SESSION, source="resume") == ({}, "")


async def test_without_an_engine_a_resumed_session_is_told_so(home: Path) -> None:
    assert "CWM-5001" in await said("SessionStart", source="resume")


# --- "current" --------------------------------------------------------------------------------------------------------


def updated(tool: str, given: dict[str, Any], **more: Any) -> dict[str, Any] | None:
    told = {"hook_event_name": "PreToolUse", "tool_name": f"mcp__plugin_cwm_cwm__{tool}", "tool_input": given}
    answer = hooks.answer(json.dumps({"session_id": SESSION, **told, **more}))
    if not answer:
        return None
    (output,) = answer.values()
    assert output["hookEventName"] == "PreToolUse" and "permissionDecision" not in output
    return dict(output["updatedInput"])


def test_current_becomes_the_session_that_claude_code_is_in() -> None:
    given = {"session_id": "current", "window_name": "w", "tags": ["a"]}
    assert updated("window_freeze", given) == {**given, "session_id": SESSION}
    assert updated("window_thaw", {"window_name": "w", "new_session_id": "current"}) == {
        "window_name": "w",
        "new_session_id": SESSION,
    }


@pytest.mark.parametrize("given", [{"session_id": "other"}, {"window_name": "current"}, {}, [], None, "current"])
def test_what_does_not_say_current_is_left_as_it_is(given: Any) -> None:
    assert updated("window_freeze", given) is None


def test_a_subagent_s_current_is_its_own_conversation() -> None:
    given = {"session_id": "current", "window_name": "w"}
    assert updated("window_freeze", given, agent_id="a1b2") == {**given, "session_id": SESSION, "head": "a1b2"}
    named = {**given, "head": "h1"}
    assert updated("window_freeze", named, agent_id="a1b2") == {**named, "session_id": SESSION}
    assert updated("window_status", {"session_id": "current"}, agent_id="a1b2") == {"session_id": SESSION}
    assert updated("window_freeze", given, agent_id="") == {**given, "session_id": SESSION}
    illegal = {**given, "session_id": SESSION, "head": legal_session_id("agent 1")}
    assert updated("window_freeze", given, agent_id="agent 1") == illegal


def test_without_a_session_current_stays_what_the_server_makes_of_it() -> None:
    assert updated("window_freeze", {"session_id": "current"}, session_id=" ") is None
    illegal = {"session_id": legal_session_id("alice@example.com")}
    assert updated("window_freeze", {"session_id": "current"}, session_id="alice@example.com") == illegal


# --- start ------------------------------------------------------------------------------------------------------------


async def test_it_starts_with_next_to_nothing(home: Path) -> None:
    answer, err = await run("PreToolUse", "-X", "importtime", session_id=SESSION, tool_input={"session_id": "current"})
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in err.splitlines() if "|" in line}
    assert answer and "msgspec" in loaded
    assert loaded.isdisjoint({"torch", "vllm", "lmcache", "mcp", "pydantic", "httpx", "rich", "typer", "redis"})


@pytest.mark.parametrize(
    "variables",
    [{}, {"CWM_HOME": "/srv/cwm"}, {"CWM_HOME": "rel"}, {"CWM_SOCKET": "~/s"}, {"CWM_HOME": "/a", "CWM_SOCKET": "/b"}],
)
def test_it_finds_the_socket_that_the_settings_name(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    monkeypatch.delenv("CWM_HOME")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hooks.socket_path(os.environ) == load_settings().socket_path
