"""`python -m cwm_mcp.hooks`: what the Claude Code plugin does at its hooks. One JSON object in on stdin, one out.

- PreCompact and SessionEnd freeze the session that Claude Code is about to lose, straight through the engine's socket
  (no MCP server is connected any more at the end), each time under a name of its own.
- PreToolUse puts the real session id where a tool of ours was called with "current": only Claude Code knows which
  session that is now (the MCP server's environment is as old as the server, and /clear begins another one).

A hook never breaks Claude Code: whatever happens it exits with 0 and says in one line what was not done. Its input and
environment hold prompts and secrets; nothing of them is logged or repeated. It starts as fast as Python does: nothing
but the standard library and msgspec is imported.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import is_session_id
from cwm_connector.operations.auto_freeze.mark import TAG, Mark, Reason
from cwm_connector.protocol.calls import FreezeArgs, ListArgs, Op
from cwm_mcp.api.client import ControlClient

CURRENT: Final = "current"
FREEZE_LIMIT_S: Final = 50.0
"""Under the 60 s that hooks.json gives a hook: Claude Code would kill it without a word."""
_SESSION_ARGUMENTS: Final = ("session_id", "new_session_id")
_ATTEMPTS: Final = 20
_LISTED: Final = 100

Answer = dict[str, Any]


def pre_tool_use(told: Mapping[str, Any]) -> Answer:
    """The tool's input with the real session; nothing where it does not say "current"."""
    given, session = told.get("tool_input"), told.get("session_id")
    if not isinstance(given, dict) or not isinstance(session, str) or not is_session_id(session):
        return {}
    real = {name: session for name in _SESSION_ARGUMENTS if given.get(name) == CURRENT}
    if not real:
        return {}
    agent, tool = told.get("agent_id"), str(told.get("tool_name"))
    if tool.endswith("window_freeze") and "head" not in given and isinstance(agent, str) and is_session_id(agent):
        real["head"] = agent  # a subagent's own conversation, not the one that it works for
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", "updatedInput": {**given, **real}}}


async def pre_compact(told: Mapping[str, Any]) -> Answer:
    trigger = "auto" if told.get("trigger") == "auto" else "manual"
    return await _freeze(told, "compact", Reason.COMPACTION, f"before Claude Code's {trigger} compaction")


async def session_end(told: Mapping[str, Any]) -> Answer:
    return await _freeze(told, "end", Reason.SESSION_END, "when Claude Code's session ended")


async def _freeze(told: Mapping[str, Any], kind: str, reason: Reason, text: str) -> Answer:
    session = told.get("session_id")
    if not isinstance(session, str) or not is_session_id(session):
        return _say("not frozen: Claude Code named no session")
    client = ControlClient(socket_path(os.environ), "cwm_mcp.hooks")
    try:
        async with asyncio.timeout(FREEZE_LIMIT_S):
            frozen = await _freeze_new_generation(client, session, kind, reason, text)
    except TimeoutError:
        return _say(f"not frozen: the engine was not done within {FREEZE_LIMIT_S:g} s")
    except CWMError as problem:
        return _say(f"not frozen: {problem}")
    finally:
        await client.aclose()
    return _say(f"froze {frozen['token_count']} tokens as {frozen['window_name']}")


async def _freeze_new_generation(
    client: ControlClient, session: str, kind: str, reason: Reason, text: str
) -> dict[str, Any]:
    """Under `KIND-SESSION-gN`, with the first N that is new."""
    stem = f"{kind}-{session.replace(':', '-').lstrip('.')[:8]}-g"
    windows = await client.call(Op.LIST, ListArgs(session_id=session, limit=_LISTED))
    taken = [int(end) for each in windows["windows"] if (end := _behind(stem, each["name"])).isdecimal()]
    first = max(taken, default=0) + 1
    for generation in range(first, first + _ATTEMPTS):
        name = f"{stem}{generation}"
        try:
            args = FreezeArgs(session, name, Mark(reason, generation).described(text), [TAG, kind])
            return await client.call(Op.FREEZE, args, timeout_s=FREEZE_LIMIT_S)
        except CWMError as problem:
            # Another session that begins alike, or the same one at the same moment.
            if problem.code is not Code.WINDOW_EXISTS:
                raise
    raise CWMError(Code.WINDOW_EXISTS, f"{_ATTEMPTS} windows from {stem}{first} on exist; delete some of them")


def _behind(stem: str, name: str) -> str:
    return name.removeprefix(stem) if name.startswith(stem) else ""


def _say(line: str) -> Answer:
    return {"systemMessage": f"CWM: {line}"}


def socket_path(environment: Mapping[str, str]) -> Path:
    """The engine's socket as settings.py finds it, without its imports, which cost more than the rest of a hook."""
    home = Path(environment.get("CWM_HOME", "~/.cwm"))
    return Path(environment.get("CWM_SOCKET", home / "engine.sock")).expanduser().absolute()


_FREEZES: Final[Mapping[str, Callable[[Mapping[str, Any]], Coroutine[Any, Any, Answer]]]] = {
    "PreCompact": pre_compact,
    "SessionEnd": session_end,
}


def answer(text: str | bytes) -> Answer:
    """What to tell Claude Code about the event that it described. Raises nothing."""
    try:
        told = json.loads(text)
        event = told["hook_event_name"]
        if event == "PreToolUse":
            return pre_tool_use(told)
        return asyncio.run(_FREEZES[event](told)) if event in _FREEZES else {}
    except Exception as problem:
        # Its text may repeat the input: the kind has to do.
        return _say(f"the hook failed with {type(problem).__name__}; please report it")


def main() -> None:
    print(json.dumps(answer(sys.stdin.buffer.read())))


if __name__ == "__main__":
    main()
