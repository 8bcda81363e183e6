"""The conversation that "current" stands for: that of the client which calls a tool.

Codex says it in the `_meta` of each call. Claude Code and Qwen Code say it in the environment of the server that they
start. An environment is handed down from program to program, so it counts only for the client that it belongs to: a
terminal inside Claude Code may run opencode.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cwm_connector.core.errors import Code, CWMError

CURRENT: Final = "current"
_CODEX_TURN: Final = "x-codex-turn-metadata"
_META: Final = ("threadId", "thread_id", "sessionId", "session_id", "conversationId", "chatId")
"""Keys of `_meta`, those that name one conversation before those that may name a family."""
_VARIABLES: Final[Mapping[str, str]] = {"claude": "CLAUDE_CODE_SESSION_ID", "qwen": "QWEN_CODE_SESSION_ID"}
"""The variable of each client, by a part of the name that it gives itself."""
_WITHOUT: Final = ("codex", "opencode", "cline", "cursor", "gemini", "inspector")
"""Clients that set no variable. One that is set belongs to the program that they were started in."""


class Caller(msgspec.Struct, frozen=True):
    """The client of a call, as the call describes it."""

    client: str = ""
    """The name that the client gives itself."""
    meta: Mapping[str, Any] | None = None


def current_session(caller: Caller) -> str:
    """Return the id of the client's conversation. Raise `Code.SESSION_ID` that says why there is none."""
    found = _in_meta(caller.meta or {}) or _in_environment(caller.client.casefold())
    if found:
        return found
    raise CWMError(
        Code.SESSION_ID,
        f"{caller.client[:60] or 'this client'} does not say which session is the current one; pass its id, "
        "session_list shows them",
        session_id=CURRENT,
    )


def unknown_to_the_engine(problem: CWMError) -> CWMError:
    """Return the error for a current session that the engine has not seen under its id."""
    return CWMError(
        problem.code,
        f"the current session is {problem.context.get('session_id', 'known to the client')}, but none of its requests "
        "reached this engine under that id; Qwen Code sends none, and a proxy may drop it: pass an id from "
        "session_list",
        **problem.context,
    )


def forget_environment() -> None:
    """Forget the session of whoever started this process, which is none of its clients'."""
    for variable in _VARIABLES.values():
        os.environ.pop(variable, None)


def _in_meta(meta: Mapping[str, Any]) -> str | None:
    turn = meta.get(_CODEX_TURN)
    for place in (meta, turn if isinstance(turn, dict) else {}):
        for key in _META:
            value = place.get(key)
            if isinstance(value, str) and value.strip():
                return value
    return None


def _in_environment(client: str) -> str | None:
    for part, variable in _VARIABLES.items():
        if part in client:
            return os.environ.get(variable)
    if any(part in client for part in _WITHOUT):
        return None
    set_ones = [value for variable in _VARIABLES.values() if (value := os.environ.get(variable))]
    return set_ones[0] if len(set_ones) == 1 else None
