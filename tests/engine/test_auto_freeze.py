"""Auto-freeze in a real engine: before eviction, when silent, and before a shutdown that a service manager asks for."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.operations.auto_freeze.mark import Mark, Reason, mark_of
from tests.support.engine import Engine, EngineOptions, Launch
from tests.support.mcp_client import Tools, mcp_client
from tests.support.talk import talked

_PATIENCE_S = 30.0


@pytest.fixture
def own_engine(shallow_model: Path, launch: Launch) -> Iterator[Engine]:
    """A KV cache of 3,072 tokens, of which 768 count as near to eviction.

    Its first start is one in new processes, as a user's is.
    """
    settings = {"CWM_AUTO_FREEZE_ENABLED": "true", "CWM_AUTO_FREEZE_NAMING_PATTERN": "{session_id}.g{generation}"}
    options = EngineOptions(model=shallow_model, max_model_len=2048, kv_tokens=3072, settings=settings)
    with Engine(options) as engine:
        engine.launch = launch
        yield engine


async def window_of(cwm: Tools, session_id: str) -> dict[str, Any]:
    """The session's window, once there is one."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        windows = (await cwm.call("window_list", session_id=session_id))["windows"]
        if windows:
            return dict(windows[0])
        await asyncio.sleep(0.1)
    raise AssertionError(f"session {session_id} was not frozen in {_PATIENCE_S:.0f} s")


async def test_sessions_are_frozen_by_themselves_and_go_on_after_a_restart(own_engine: Engine) -> None:
    engine = own_engine
    async with mcp_client(engine) as cwm:
        first = await talked(engine.api, "pushed-out", 400, tokens=760)
        for number in range(2):
            await talked(engine.api, f"pushing-{number}", 410 + number, tokens=760)
        evicted = await window_of(cwm, "pushed-out")
        assert mark_of(evicted["description"], evicted["tags"]) == Mark(Reason.EVICTION, 1)
        assert "partial" not in evicted["description"]

        await cwm.call("auto_freeze_policy", idle_timeout_minutes=0.01)
        await talked(engine.api, "silent", 420, tokens=504)
        silent = await window_of(cwm, "silent")
        assert silent["name"] == "silent.g1" and mark_of(silent["description"], ["auto"]) == Mark(Reason.IDLE, 1)
        await cwm.call("auto_freeze_policy", idle_timeout_minutes=30, keep_last=5)

        last = await talked(engine.api, "last-words", 430, tokens=504)
        uninterrupted = await last.branch("last-words").say(last.cue(), logprobs=5)
        await asyncio.to_thread(engine.stop)
        listed = await cwm.call("window_list", session_id="last-words")  # the catalog is read without the engine
        (window,) = listed["windows"]
        assert mark_of(window["description"], window["tags"]) == Mark(Reason.SHUTDOWN, 1)

        await asyncio.to_thread(engine.start)
        policy = await cwm.call("auto_freeze_policy")
        assert (policy["enabled"], policy["idle_timeout_minutes"], policy["keep_last"]) == (True, 30, 5)
        block_tokens = await engine.api.block_tokens()
        for name, talk in (("last-words.g1", last), ("pushed-out.g1", first)):
            thawed = await cwm.call("window_thaw", window_name=name)
            assert not thawed["partial"]
            heard = await talk.branch(talk.session_id).say(talk.cue(), logprobs=5)
            assert heard.restored >= talk.full_blocks(block_tokens)
            if talk is last:
                assert heard.completion.token_ids == uninterrupted.completion.token_ids
