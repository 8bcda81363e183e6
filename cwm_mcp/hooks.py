"""`python -m cwm_mcp.hooks`: handle a hook of the Claude Code plugin. Reads one JSON object and prints another.

- PreCompact and SessionEnd freeze the session before Claude Code loses it, each time under a new name. They call the
  engine over its socket, because no MCP server is connected any more when a session ends.
- SessionStart says what a resumed session loads by itself, or what can be thawed into it.
- PreToolUse replaces "current" by the real session id in a call of one of our tools. Only Claude Code knows the current
  session: the environment of the MCP server is as old as the server, and /clear starts a new session.

The engine carries on a freeze that it has accepted, even if Claude Code kills the hook.

A hook never breaks Claude Code. It always exits with 0 and says in one line what it could not do. Its input and
environment contain prompts and secrets, so it never logs or repeats them. It imports only the standard library and
msgspec, because Claude Code waits for it to start.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import legal_session_id
from cwm_connector.operations.auto_freeze.mark import TAG, Mark, Reason
from cwm_connector.protocol.calls import FreezeArgs, ListArgs, Op, ResumableArgs
from cwm_mcp.api.client import ControlClient

CURRENT: Final = "current"
FREEZE_LIMIT_S: Final = 50.0
"""For all calls of one hook together. With `_GRACE_S` it is less than the 60 s of hooks.json, after which Claude Code
kills the hook without a message."""
_GRACE_S: Final = 3.0
"""For the engine to answer that a freeze goes on."""
RESUME_LIMIT_S: Final = 3.0
"""A hook at the start of a session holds its first prompt up."""
_SESSION_ARGUMENTS: Final = ("session_id", "new_session_id")
_ATTEMPTS: Final = 20
"""Names to try."""
_LISTED: Final = 100
"""Windows to read to find the last generation."""

Answer = dict[str, Any]


def pre_tool_use(event: Mapping[str, Any]) -> Answer:
    """Return the tool's input with the real session id, or nothing if the input does not say "current"."""
    tool_input, session = event.get("tool_input"), _id_in(event, "session_id")
    if not isinstance(tool_input, dict) or session is None:
        return {}
    real = {name: session for name in _SESSION_ARGUMENTS if tool_input.get(name) == CURRENT}
    if not real:
        return {}
    agent, tool = _id_in(event, "agent_id"), str(event.get("tool_name"))
    if tool.endswith("window_freeze") and "head" not in tool_input and agent is not None:
        real["head"] = agent  # the subagent's own conversation, not that of its parent
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", "updatedInput": {**tool_input, **real}}}


async def pre_compact(event: Mapping[str, Any]) -> Answer:
    """Freeze the session before Claude Code compacts it."""
    trigger = "auto" if event.get("trigger") == "auto" else "manual"
    return await _freeze(event, "compact", Reason.COMPACTION, f"before Claude Code's {trigger} compaction")


async def session_end(event: Mapping[str, Any]) -> Answer:
    """Freeze the session when it ends."""
    return await _freeze(event, "end", Reason.SESSION_END, "when Claude Code's session ended")


async def session_start(event: Mapping[str, Any]) -> Answer:
    """Return a line about what a resumed session loads by itself, or which windows can be thawed into it."""
    session = _id_in(event, "session_id")
    if event.get("source") != "resume" or session is None:
        return {}
    client = ControlClient(socket_path(os.environ), "cwm_mcp.hooks")
    try:
        async with asyncio.timeout(RESUME_LIMIT_S):
            found = await client.call(Op.RESUMABLE, ResumableArgs(session), timeout_s=RESUME_LIMIT_S)
    except TimeoutError:
        return {}
    except CWMError as problem:
        return _message(f"it is not known what can be restored: {problem}")
    finally:
        await client.aclose()
    return _resumed(session, found)


def _resumed(session: str, found: Mapping[str, Any]) -> Answer:
    own, others = found["window_name"], found["others"]
    if own is not None and found["automatic"]:
        return _message(f"{found['restorable_tokens']:,} tokens of window {own} load by themselves when you go on")
    names = [own] if own is not None else others
    if not names:
        return {}
    thaws = " or ".join(f"`cwm thaw {name} --session {session}`" for name in names)
    if own is not None:
        return _message(f"run {thaws} to restore {found['restorable_tokens']:,} tokens")
    hope = " An earlier conversation that goes on loads by itself." if found["automatic"] else ""
    return _message(f"this session has no window yet.{hope} To restore one, run {thaws}")


async def _freeze(event: Mapping[str, Any], kind: str, reason: Reason, text: str) -> Answer:
    session = _id_in(event, "session_id")
    if session is None:
        return _message("not frozen: Claude Code gave no session id")
    client = ControlClient(socket_path(os.environ), "cwm_mcp.hooks", grace_s=min(_GRACE_S, FREEZE_LIMIT_S))
    try:
        frozen = await _freeze_new_generation(client, session, kind, reason, text)
    except CWMError as problem:
        if (name := problem.context.get("carried_on")) is not None:
            return _message(f"still freezing {name}: {problem.message}")
        if problem.code is Code.ENGINE_TIMEOUT:
            return _message(f"not frozen: the engine did not finish within {FREEZE_LIMIT_S:g} s; run cwm health engine")
        return _message(f"not frozen: {problem}")
    finally:
        await client.aclose()
    return _message(f"froze {frozen['token_count']} tokens as {frozen['window_name']}")


def _id_in(event: Mapping[str, Any], field: str) -> str | None:
    """Return the id that the engine has for the one in the event, or None if the event has none."""
    text = event.get(field)
    return legal_session_id(text) if isinstance(text, str) else None


async def _freeze_new_generation(
    client: ControlClient, session: str, kind: str, reason: Reason, text: str
) -> dict[str, Any]:
    """Freeze the session as `KIND-SESSION-gN` with the next free N."""
    deadline = time.monotonic() + FREEZE_LIMIT_S
    stem = f"{kind}-{session.replace(':', '-').lstrip('.')[:8]}-g"
    windows = await client.call(Op.LIST, ListArgs(session_id=session, limit=_LISTED), timeout_s=FREEZE_LIMIT_S)
    taken = [int(end) for each in windows["windows"] if (end := _after(stem, each["name"])).isdecimal()]
    first = max(taken, default=0) + 1
    for generation in range(first, first + _ATTEMPTS):
        name = f"{stem}{generation}"
        try:
            args = FreezeArgs(session, name, Mark(reason, generation).described(text), [TAG, kind])
            left_s = max(deadline - time.monotonic(), _GRACE_S)
            return await client.call(Op.FREEZE, args, timeout_s=left_s)
        except CWMError as problem:
            # Taken by a session with the same first characters, or by the same session at the same moment.
            if problem.context.get("carried_on"):
                raise CWMError(problem.code, problem.message, carried_on=name) from None
            if problem.code is not Code.WINDOW_EXISTS:
                raise
    raise CWMError(
        Code.WINDOW_EXISTS, f"the next {_ATTEMPTS} names from {stem}{first} on are taken; delete some windows"
    )


def _after(stem: str, name: str) -> str:
    return name.removeprefix(stem) if name.startswith(stem) else ""


def _message(line: str) -> Answer:
    return {"systemMessage": f"CWM: {line}"}


def socket_path(environment: Mapping[str, str]) -> Path:
    """Return the engine's socket, as the settings do. Importing those would take longer than the whole hook.

    Raise `Code.ARGUMENT` where "~" stands for nothing.
    """
    home = environment.get("CWM_HOME") or "~/.cwm"
    try:
        return Path(environment.get("CWM_SOCKET") or Path(home) / "engine.sock").expanduser().absolute()
    except (RuntimeError, OSError):
        raise CWMError(Code.ARGUMENT, "there is no home folder; set CWM_HOME to an absolute path") from None


_CALLS: Final[Mapping[str, Callable[[Mapping[str, Any]], Coroutine[Any, Any, Answer]]]] = {
    "SessionStart": session_start,
    "PreCompact": pre_compact,
    "SessionEnd": session_end,
}
"""The hooks that call the engine."""


def answer(text: str | bytes) -> Answer:
    """Return the answer to the event that Claude Code sent as JSON. Never raise an exception."""
    try:
        event = json.loads(text)
        name = event["hook_event_name"]
        if name == "PreToolUse":
            return pre_tool_use(event)
        return asyncio.run(_CALLS[name](event)) if name in _CALLS else {}
    except CWMError as problem:
        return _message(str(problem))
    except Exception as problem:
        # Only the type of the error, because its text may repeat the input.
        return _message(f"the hook failed with {type(problem).__name__}; please report it")


def main() -> None:
    """Answer the event on stdin."""
    print(json.dumps(answer(sys.stdin.buffer.read())))


if __name__ == "__main__":
    main()
