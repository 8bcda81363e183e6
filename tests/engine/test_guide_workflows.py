"""The user guide's workflows 1 to 4 as they stand there, through a real MCP client on stdio.

The calls are the guide's own, letter for letter; the lines between them are the conversation it leaves out.

They run on the small model, and on models that can be resumed at boundaries alone. Those are checkpoints with random
weights, so a thaw is held against vLLM's own prefix cache, bit for bit. `make test` runs Gemma 3, and
CWM_TEST_ARCHITECTURES=qwen3-next runs Qwen3-Next.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.api import Api
from tests.support.checkpoints import checkpoint
from tests.support.engine import Engine, EngineOptions, Launch
from tests.support.mcp_client import Tools, mcp_client
from tests.support.talk import Talk, talked

_SESSION = 512
"""Tokens of a session, or one block if that is longer."""
_BOUNDARIES_ALONE = ("gemma3", "qwen3-next")
_CHOSEN = os.environ.get("CWM_TEST_ARCHITECTURES") or "gemma3"


@dataclass(frozen=True, slots=True)
class Served:
    """A model that an engine serves."""

    engine: Engine
    unit: int
    """Tokens after which it can be resumed."""
    is_exact: bool
    """True if nothing pushes a session out of vLLM's own cache, which then says what is right."""

    @property
    def api(self) -> Api:
        return self.engine.api

    async def talked(self, session_id: str, seed: int) -> Talk:
        """A session whose answer completes its last block."""
        return await talked(self.api, session_id, seed, max(1, _SESSION // self.unit) * self.unit - 8)

    def long(self, text: str, times: int) -> str:
        """The text so many times, or more often where blocks are longer than those of the small model."""
        return text * (times * max(1, self.unit // 128))


@pytest.fixture(scope="module", params=["small", *_BOUNDARIES_ALONE])
def served(request: pytest.FixtureRequest, launch: Launch) -> Iterator[Served]:
    name: str = request.param
    if name == "small":
        engine: Engine = request.getfixturevalue("engine")
        yield Served(engine, asyncio.run(engine.api.block_tokens()), is_exact=False)
        return
    if _CHOSEN != "all" and name not in _CHOSEN.split(","):
        pytest.skip(f"CWM_TEST_ARCHITECTURES={name} runs the workflows on {name}")
    options = EngineOptions(
        model=checkpoint(name),
        dtype="bfloat16",
        max_model_len=4096,
        kv_tokens=100_000,
        settings={"CWM_AUTO_THAW": "off"},
    )
    with Engine(options, launch) as engine:
        yield Served(engine, asyncio.run(engine.api.block_tokens()), is_exact=True)


async def goes_on_restored(served: Served, result: dict[str, object], talk: Talk, session_id: str | None) -> None:
    """The next question after a thaw finds every full block of `talk` restored or still cached."""
    salt = result["cache_salt"]
    assert isinstance(salt, str)
    if not served.is_exact:
        heard = await talk.branch(session_id, salt).say("\nAnd then?", max_tokens=1)
        assert heard.restored >= talk.full_blocks(served.unit)
        return
    own = await talk.branch(None, talk.cache_salt).say("\nAnd then?", logprobs=5)
    heard = await talk.branch(session_id, salt).say("\nAnd then?", logprobs=5)
    assert own.local_hits == heard.restored == talk.full_blocks(served.unit)
    assert heard.completion.token_ids == own.completion.token_ids
    assert heard.completion.top_logprobs == own.completion.top_logprobs


async def test_workflow_1_simple_save_and_restore(served: Served) -> None:
    talk = await served.talked("current-session", 300)
    async with mcp_client(served.engine) as cwm:
        window_freeze, window_thaw = cwm.tool("window_freeze"), cwm.tool("window_thaw")

        # Save your context
        await window_freeze(
            session_id="current-session",
            window_name="debug-session-jan23",
            description="Debugging the authentication flow - found the issue with token refresh",
            tags=["debug", "auth"],
        )

        # ... time passes ...

        # Restore and continue
        result = await window_thaw(window_name="debug-session-jan23")

    await goes_on_restored(served, result, talk, None)


async def test_workflow_2_branching_for_exploration(served: Served) -> None:
    stem = await served.talked("exploration", 301)
    async with mcp_client(served.engine) as cwm:
        window_freeze, window_thaw = cwm.tool("window_freeze"), cwm.tool("window_thaw")

        # Save the current state
        await window_freeze(session_id="exploration", window_name="before-experiment")

        # Try approach A
        approach_a = stem.branch("exploration")
        await approach_a.say(served.long("\nApproach A: drain the lock first. ", 20))

        # Save approach A
        await window_freeze(session_id="exploration", window_name="approach-a", tags=["experiment", "approach-a"])

        # Go back and try approach B
        back = await window_thaw(window_name="before-experiment")
        assert back["session_id"] == "exploration"

        approach_b = stem.branch("exploration", back["cache_salt"])
        heard = await approach_b.say(served.long("\nApproach B: send the diver in. ", 30))
        assert heard.restored >= stem.full_blocks(served.unit)

        # Save approach B
        await window_freeze(session_id="exploration", window_name="approach-b", tags=["experiment", "approach-b"])

        # Compare or choose the better approach
        for name, talk in {"before-experiment": stem, "approach-a": approach_a, "approach-b": approach_b}.items():
            status = await cwm.call("window_status", window_name=name)
            assert status["token_count"] == talk.computed_tokens, name
            chosen = await window_thaw(window_name=name, new_session_id=f"chosen-{name}")
            await goes_on_restored(served, chosen, talk, chosen["session_id"])


async def test_workflow_3_cloning_for_collaboration(served: Served) -> None:
    talk = await served.talked("work", 302)
    async with mcp_client(served.engine) as cwm:
        window_clone, window_thaw = cwm.tool("window_clone"), cwm.tool("window_thaw")
        await cwm.call("window_freeze", session_id="work", window_name="my-project", tags=["project-x"])

        # Clone your current work
        cloned = await window_clone(
            source_window="my-project",
            target_window="my-project-for-alice",
            description="Clone for Alice to explore caching strategies",
        )

        # Alice can now thaw "my-project-for-alice" independently
        assert cloned["new_bytes"] == 0
        alice = await window_thaw(window_name="my-project-for-alice", new_session_id="alice")
        await goes_on_restored(served, alice, talk, "alice")
        status = await cwm.call("window_status", window_name="my-project-for-alice")
        assert status["lineage"]["parent"] == "my-project"


async def test_workflow_4_organizing_with_tags(served: Served) -> None:
    await served.talked("tagged", 303)
    async with mcp_client(served.engine) as cwm:
        window_list = cwm.tool("window_list")
        await freeze_tagged(cwm)

        # List all contexts for a specific project
        result = await window_list(tags=["project-x"])
        assert {"tagged-1", "tagged-2"} <= {item["name"] for item in result["windows"]}
        assert all("project-x" in item["tags"] for item in result["windows"])

        # List recent debugging sessions
        result = await window_list(tags=["debug"], sort_by="created_at", sort_order="desc", limit=5)
        assert [item["name"] for item in result["windows"]][:2] == ["tagged-3", "tagged-2"]


async def freeze_tagged(cwm: Tools) -> None:
    for name, tags in {"tagged-1": ["project-x"], "tagged-2": ["project-x", "debug"], "tagged-3": ["debug"]}.items():
        await cwm.call("window_freeze", session_id="tagged", window_name=name, tags=tags)
