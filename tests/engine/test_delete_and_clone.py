"""What a clone costs and what a deletion gives back, by the bytes in the folder."""

from tests.support.chunks import stored_bytes
from tests.support.engine import Engine
from tests.support.mcp_client import mcp_client
from tests.support.talk import talked
from tests.support.texts import prompt_of


async def test_a_clone_stores_nothing_and_outlives_its_source(engine: Engine) -> None:
    talk = await talked(engine.api, "cloned", 400, tokens=504)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="cloned", window_name="source")
        before = stored_bytes(engine.home)
        clone = await cwm.call("window_clone", source_window="source", target_window="copy")
        assert clone["new_bytes"] == 0
        assert clone["shared_blocks"] > 0
        assert stored_bytes(engine.home) == before

        deleted = await cwm.call("window_delete", window_name="source", force=True)
        assert (deleted["space_freed_bytes"], deleted["blocks_deleted"]) == (0, 0)
        assert deleted["blocks_shared"] == clone["shared_blocks"]
        assert stored_bytes(engine.home) == before
        thawed = await cwm.call("window_thaw", window_name="copy", new_session_id="copy-reader")
    heard = await talk.branch("copy-reader", thawed["cache_salt"]).say("\nAnd then?", max_tokens=1)
    assert heard.restored >= talk.full_blocks(await engine.api.block_tokens())


async def test_deleting_gives_back_exactly_what_nobody_shares(engine: Engine) -> None:
    talk = await talked(engine.api, "grown", 401, tokens=504)
    async with mcp_client(engine) as cwm:
        empty = stored_bytes(engine.home)
        short = await cwm.call("window_freeze", session_id="grown", window_name="short")
        assert stored_bytes(engine.home) - empty == short["new_bytes"]
        await talk.say(await prompt_of(engine.api, 402, 600))
        long = await cwm.call("window_freeze", session_id="grown", window_name="long")
        both = stored_bytes(engine.home)
        assert both - empty == short["new_bytes"] + long["new_bytes"]

        listed = (await cwm.call("window_list", session_id="grown"))["windows"]
        unique = {item["name"]: item["unique_bytes"] for item in listed}
        first = await cwm.call("window_delete", window_name="long", force=True)
        assert first["space_freed_bytes"] == unique["long"] == both - stored_bytes(engine.home) > 0
        assert first["blocks_shared"] > 0
        thawed = await cwm.call("window_thaw", window_name="short", new_session_id="short-reader")
        assert not thawed["partial"]

        second = await cwm.call("window_delete", window_name="short", force=True)
        assert second["blocks_shared"] == 0
        assert stored_bytes(engine.home) == empty


async def test_a_deleted_window_restores_nothing_any_more(engine: Engine) -> None:
    talk = await talked(engine.api, "gone", 403, tokens=504)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="gone", window_name="gone-1")
        thawed = await cwm.call("window_thaw", window_name="gone-1", new_session_id="gone-reader")
        await cwm.call("window_delete", window_name="gone-1", force=True)
    heard = await talk.branch("gone-reader", thawed["cache_salt"]).say("\nAnd then?", max_tokens=1)
    assert heard.restored == 0
