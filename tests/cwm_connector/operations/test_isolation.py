"""Whose thawed windows a request may load, from its headers to loaded pages: its own session's and no other's."""

from typing import Any

from cwm_connector.middleware import SessionHeader
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.surveys import everything
from tests.support.vllm_parts import BLOCK_TOKENS

WORDS = list(range(1, 4 * BLOCK_TOKENS + 1))


async def session_of(**headers: str) -> str | None:
    """What vLLM puts on the request of a client with these headers."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "headers": raw}

    async def app(*_: object) -> None:
        pass

    await SessionHeader(app)(scope, None, None)  # type: ignore[arg-type]
    return next((value.decode() for name, value in scope["headers"] if name == b"x-session-id"), None)


async def test_only_its_session_and_its_subagents_load_a_thawed_window(thaw_only: Miniature) -> None:
    alice = await session_of(x_claude_code_session_id="alice")
    agent = await session_of(x_claude_code_session_id="alice", x_claude_code_agent_id="a1")
    bob = await session_of(x_claude_code_session_id="bob", x_claude_code_agent_id="alice")
    codex = await session_of(session_id="carol")
    await thaw_only.serve([*WORDS, 1], alice)
    await thaw_only.call(Op.FREEZE, session_id="alice", window_name="w")
    thawed = await thaw_only.call(Op.THAW, window_name="w")
    await thaw_only.evict()
    assert thawed["session_id"] == alice
    assert await thaw_only.resume(WORDS, alice) == len(WORDS)
    assert await thaw_only.resume(WORDS, agent) == len(WORDS)
    for stranger in (bob, codex, await session_of(), "alice/a/b", "salt-alice"):
        assert await thaw_only.resume(WORDS, stranger) == 0, stranger
    assert await thaw_only.resume(WORDS, None, "some salt") == 0


async def test_an_anonymous_session_can_be_frozen_and_its_window_stays_its_own(thaw_only: Miniature) -> None:
    await thaw_only.serve([*WORDS, 1])
    (view, _), *others = everything(thaw_only.scheduler.session_views())
    assert not others
    frozen = await thaw_only.call(Op.FREEZE, session_id=view.session_id, window_name="w")
    assert frozen["captured_tokens"] == len(WORDS)
    await thaw_only.call(Op.THAW, window_name="w", new_session_id="alice")
    await thaw_only.evict()
    assert await thaw_only.resume(WORDS) == 0
    assert await thaw_only.resume(WORDS, "bob") == 0
    assert await thaw_only.resume(WORDS, "alice") == len(WORDS)
