"""Prompts, which a person picks from a client's menu: resume a window, branch from it, hand it over.

Each prompt names the tools that a model should call, and contains what is known about the window.
"""

import msgspec
from mcp.server.mcpserver import MCPServer

from cwm_connector.core.names import check_window_name
from cwm_connector.core.speaker import check_session_id
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.results import WindowMetadata
from cwm_mcp.server.library_errors import prompt_errors
from cwm_mcp.server.resources import PAGE_TEXT_TOKENS


def register(server: MCPServer[Operations], operations: Operations) -> None:
    """Add the prompts to the server."""

    async def resume(window: str, session: str = "") -> str:
        """Go on with a window's conversation."""
        with prompt_errors():
            known = await operations.window(check_window_name(window))
            into = f', new_session_id="{check_session_id(session)}"' if session else ""
        return (
            f"Go on with the conversation that is saved as window '{window}': {_as_json(known)}\n\n"
            f'1. Call window_thaw(window_name="{window}"{into}). If it warns, tell me what will be computed again.\n'
            f"2. Read its end: {_end_of(known)}.\n"
            "3. Say in three sentences where it stood and what was to come next, then go on with that. To let the "
            "saved conversation itself answer, call window_thaw with a continuation_prompt."
        )

    async def branch(window: str, new_window: str = "") -> str:
        """Try another way from a window, and keep it as it is."""
        with prompt_errors():
            known = await operations.window(check_window_name(window))
            target = check_window_name(new_window or f"{window[:121]}-branch")
        return (
            f"Branch from window '{window}', which stays as it is: {_as_json(known)}\n\n"
            f'1. Call window_clone(source_window="{window}", target_window="{target}") with a description of what is '
            "to be tried; ask me if I have not said it.\n"
            f'2. Call window_thaw(window_name="{target}", new_session_id="{target}").\n'
            f"3. Work in that session. Keep the outcome with window_freeze(session_id="
            f'"{target}", window_name="{target}-result").'
        )

    async def handover(window: str, to: str = "") -> str:
        """Write up a window for a colleague, and give it a copy of its own."""
        with prompt_errors():
            known = await operations.window(check_window_name(window))
        whom = to or "a colleague"
        return (
            f"Hand window '{window}' over to {whom}: {_as_json(known)}\n\n"
            f"1. Read {known.transcript_uri} to its end.\n"
            "2. Write a handover of one page: the aim, what was decided and why, the state now, what is open, the next "
            "step.\n"
            f'3. Call window_clone(source_window="{window}", target_window=…, description=…) with a name that says for '
            f"whom it is, and the handover in at most 2,000 characters.\n"
            "4. Tell me the command with which it is taken up: cwm thaw and the copy's name."
        )

    for prompt in (resume, branch, handover):
        server.prompt()(prompt)


def _as_json(known: WindowMetadata) -> str:
    return msgspec.json.encode(known).decode()


def _end_of(known: WindowMetadata) -> str:
    start = max(0, known.token_count - PAGE_TEXT_TOKENS)
    return f"{known.transcript_uri}?offset={start}" if start else known.transcript_uri
