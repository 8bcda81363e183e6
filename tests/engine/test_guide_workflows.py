"""The user guide's workflows 1 to 4 as they stand there, through a real MCP client on stdio.

The calls are the guide's own, letter for letter; the lines between them are the conversation it leaves out.
"""

from tests.support.engine import Engine
from tests.support.mcp_client import Tools, mcp_client
from tests.support.talk import Talk, talked


async def goes_on_restored(engine: Engine, result: dict[str, object], talk: Talk, session_id: str | None) -> None:
    """The next question after a thaw finds every full block of `talk` restored or still cached."""
    salt = result["cache_salt"]
    assert isinstance(salt, str)
    heard = await talk.branch(session_id, salt).say("\nAnd then?", max_tokens=1)
    assert heard.restored >= talk.full_blocks(await engine.api.block_tokens())


async def test_workflow_1_simple_save_and_restore(engine: Engine) -> None:
    talk = await talked(engine.api, "current-session", 300, tokens=504)
    async with mcp_client(engine) as cwm:
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

    await goes_on_restored(engine, result, talk, None)


async def test_workflow_2_branching_for_exploration(engine: Engine) -> None:
    stem = await talked(engine.api, "exploration", 301, tokens=504)
    async with mcp_client(engine) as cwm:
        window_freeze, window_thaw = cwm.tool("window_freeze"), cwm.tool("window_thaw")

        # Save the current state
        await window_freeze(session_id="exploration", window_name="before-experiment")

        # Try approach A
        approach_a = stem.branch("exploration")
        await approach_a.say("\nApproach A: drain the lock first. " * 20)

        # Save approach A
        await window_freeze(session_id="exploration", window_name="approach-a", tags=["experiment", "approach-a"])

        # Go back and try approach B
        back = await window_thaw(window_name="before-experiment")
        assert back["session_id"] == "exploration"

        approach_b = stem.branch("exploration", back["cache_salt"])
        heard = await approach_b.say("\nApproach B: send the diver in. " * 30)
        assert heard.restored >= stem.full_blocks(await engine.api.block_tokens())

        # Save approach B
        await window_freeze(session_id="exploration", window_name="approach-b", tags=["experiment", "approach-b"])

        # Compare or choose the better approach
        for name, talk in {"before-experiment": stem, "approach-a": approach_a, "approach-b": approach_b}.items():
            status = await cwm.call("window_status", window_name=name)
            assert status["token_count"] == talk.computed_tokens, name
            chosen = await window_thaw(window_name=name, new_session_id=f"chosen-{name}")
            await goes_on_restored(engine, chosen, talk, chosen["session_id"])


async def test_workflow_3_cloning_for_collaboration(engine: Engine) -> None:
    talk = await talked(engine.api, "work", 302, tokens=504)
    async with mcp_client(engine) as cwm:
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
        await goes_on_restored(engine, alice, talk, "alice")
        status = await cwm.call("window_status", window_name="my-project-for-alice")
        assert status["lineage"]["parent"] == "my-project"


async def test_workflow_4_organizing_with_tags(engine: Engine) -> None:
    await talked(engine.api, "tagged", 303, tokens=300, answer=4)
    async with mcp_client(engine) as cwm:
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
