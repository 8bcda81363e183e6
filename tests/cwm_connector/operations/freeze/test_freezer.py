"""freezer.py over real tiers, a real catalog and vLLM's block pool. Only the model is missing."""

import asyncio
import threading
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import legal_session_id
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature, chunk_files
from tests.support.stores import blocks_of, on_disk
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)  # four chunks and one block


async def test_a_freeze_reports_what_is_on_the_disk(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    frozen = await engine.call(Op.FREEZE, session_id="alice", window_name="w", tags=["a"], description="first")
    assert (frozen["token_count"], frozen["captured_tokens"], frozen["recomputed_tokens"]) == (144, 144, 0)
    assert frozen["block_count"] == 5 == len(chunk_files(engine.settings.home))
    assert frozen["new_bytes"] == frozen["total_size_bytes"] == on_disk(engine)
    assert frozen["parent_window"] is None


async def test_freezing_again_stores_only_what_is_new(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w1")
    before = on_disk(engine)
    again = await engine.call(Op.FREEZE, session_id="alice", window_name="w2")
    assert again["new_bytes"] == 0 and on_disk(engine) == before and again["parent_window"] == "w1"
    await engine.serve(range(1000, 1000 + 12 * BLOCK_TOKENS), "alice")
    more = await engine.call(Op.FREEZE, session_id="alice", window_name="w3")
    assert more["new_bytes"] == on_disk(engine) - before > 0


async def test_two_sessions_with_the_same_beginning_share_its_chunks(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.serve([*TEXT[:128], *range(5000, 5016)], "bob")
    await engine.call(Op.FREEZE, session_id="alice", window_name="a")
    bob = await engine.call(Op.FREEZE, session_id="bob", window_name="b")
    assert [block["hash"] for block in await blocks_of(engine, "a")][:4] == [
        block["hash"] for block in await blocks_of(engine, "b")
    ][:4]
    assert bob["new_bytes"] == (await blocks_of(engine, "b"))[4]["size_bytes"]
    assert await engine.resume(TEXT, session_id="bob") == 128  # of its own window, and no more than it shares


async def test_evicted_blocks_are_computed_again_and_counted(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice", salt="s")
    await engine.evict()
    frozen = await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    assert frozen["captured_tokens"] == 144 and frozen["recomputed_tokens"] == 144
    thawed = await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await engine.resume(TEXT, session_id="bob", salt=thawed["cache_salt"]) == 144


async def test_stored_chunks_are_loaded_rather_than_computed_again(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w1")
    await engine.serve(range(1000, 1000 + 12 * BLOCK_TOKENS), "alice")
    await engine.evict()
    frozen = await engine.call(Op.FREEZE, session_id="alice", window_name="w2")
    assert frozen["recomputed_tokens"] == 4 * BLOCK_TOKENS  # four whole chunks of two blocks were there


@pytest.mark.parametrize("name", ["alice@example.com", "no spaces", "/home/alice", "x" * 200, "\u00fcber", "a;b"])
async def test_a_session_with_an_illegal_id_is_found_by_that_id_everywhere(engine: Miniature, name: str) -> None:
    legal = legal_session_id(name)
    await engine.serve(TEXT, name)
    frozen = await engine.call(Op.FREEZE, session_id=name, window_name="w")
    assert frozen["session_id"] == legal
    assert (await engine.call(Op.STATUS, session_id=name))["id"] == legal
    assert [each["name"] for each in (await engine.call(Op.LIST, session_id=name))["windows"]] == ["w"]
    assert (await engine.call(Op.LIST, session_id=f"{name}!"))["windows"] == []
    assert (await engine.call(Op.THAW, window_name="w", new_session_id=name))["session_id"] == legal


async def test_a_head_is_named_with_its_session_or_beside_it(engine: Miniature) -> None:
    await engine.serve(TEXT, "team/alice")
    await engine.serve(range(1000, 1000 + 12 * BLOCK_TOKENS), "team/agent 1")
    for number, args in enumerate(
        ({"session_id": "team/agent 1"}, {"session_id": "team", "head": "agent 1"}, {"session_id": "team/alice"})
    ):
        frozen = await engine.call(Op.FREEZE, window_name=f"w{number}", **args)  # type: ignore[arg-type]
        assert frozen["session_id"] == "team"
        assert (frozen["token_count"] == len(TEXT)) == (number == 2), args


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"session_id": "nobody", "window_name": "w"}, Code.SESSION_NOT_FOUND),
        ({"session_id": "alice", "window_name": "w", "head": "h9"}, Code.SESSION_NOT_FOUND),
        ({"session_id": "no spaces", "window_name": "w"}, Code.SESSION_NOT_FOUND),
        ({"session_id": " ", "window_name": "w"}, Code.SESSION_ID),
        ({"session_id": "x" * 1025, "window_name": "w"}, Code.SESSION_ID),
        ({"session_id": "alice", "window_name": "../w"}, Code.WINDOW_NAME),
        ({"session_id": "alice", "window_name": ".w"}, Code.WINDOW_NAME),
        ({"session_id": "alice", "window_name": "taken"}, Code.WINDOW_EXISTS),
        ({"session_id": "alice", "window_name": "w", "tags": ["no tag"]}, Code.ARGUMENT),
        ({"session_id": "alice", "window_name": "w", "description": "x" * 2001}, Code.ARGUMENT),
        ({"session_id": "short", "window_name": "w"}, Code.STATE),
    ],
)
async def test_a_refused_freeze_says_why_and_changes_nothing(engine: Miniature, args: dict, code: Code) -> None:
    await engine.serve(TEXT, "alice")
    await engine.serve(range(3), "short")
    await engine.call(Op.FREEZE, session_id="alice", window_name="taken")
    before = on_disk(engine)
    with pytest.raises(CWMError) as refused:
        await engine.call(Op.FREEZE, **args)
    assert refused.value.code is code
    assert on_disk(engine) == before
    assert (await engine.call(Op.LIST))["total"] == 1


async def test_a_freeze_over_the_disk_limit_is_refused_whole(tmp_path: Path) -> None:
    small = await Miniature.started(tmp_path, disk_cache_gb=60_000 / (1 << 30))
    await small.serve(TEXT, "alice")
    with pytest.raises(CWMError, match=r"CWM-4003.*CWM_DISK_CACHE_GB"):
        await small.call(Op.FREEZE, session_id="alice", window_name="w")
    assert chunk_files(tmp_path) == [] and (await small.call(Op.LIST))["total"] == 0
    small.close()


async def test_a_freeze_whose_disk_fails_leaves_no_window_and_works_again_afterwards(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    chunks, away = engine.settings.chunks_path, engine.settings.home / "away"
    chunks.rename(away)
    with pytest.raises(CWMError, match="CWM-4001"):
        await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    away.rename(chunks)
    assert (await engine.call(Op.LIST))["total"] == 0
    assert (await engine.call(Op.FREEZE, session_id="alice", window_name="w"))["captured_tokens"] == 144


async def test_a_cancelled_freeze_leaves_nothing_and_delays_nobody(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.serve(range(5000, 5064), "bob")
    free = engine.pool.get_num_free_blocks()
    held_up = threading.Event()
    engine.worker._save_thread.submit(held_up.wait, 60)
    freezing = asyncio.create_task(engine.call(Op.FREEZE, session_id="alice", window_name="w"))
    while engine.pool.get_num_free_blocks() == free:  # noqa: ASYNC110 until the freeze holds its blocks
        await asyncio.sleep(0)
    freezing.cancel()
    held_up.set()
    with pytest.raises(asyncio.CancelledError):
        await freezing
    assert engine.pool.get_num_free_blocks() == free
    bob = await engine.call(Op.FREEZE, session_id="bob", window_name="b")
    assert on_disk(engine) == bob["new_bytes"]
    assert (await engine.call(Op.LIST))["total"] == 1
    assert (await engine.call(Op.FREEZE, session_id="alice", window_name="w"))["captured_tokens"] == 144


async def test_two_clients_may_freeze_the_same_session_at_once(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    both = await asyncio.gather(*(engine.call(Op.FREEZE, session_id="alice", window_name=f"w{n}") for n in range(2)))
    assert sorted(each["new_bytes"] for each in both) == [0, both[0]["total_size_bytes"]]


async def test_of_two_clients_with_one_name_exactly_one_gets_it(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    freezes = (engine.call(Op.FREEZE, session_id="alice", window_name="w") for _ in range(2))
    both = await asyncio.gather(*freezes, return_exceptions=True)
    (error,) = [each for each in both if isinstance(each, CWMError)]
    assert error.code is Code.WINDOW_EXISTS
    assert (await engine.call(Op.THAW, window_name="w"))["restorable_tokens"] == 144


async def test_no_freeze_is_acknowledged_after_its_home_was_removed(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    home = engine.settings.home
    away = home.with_name(f"{home.name}-away")
    home.rename(away)
    for call in (
        engine.call(Op.FREEZE, session_id="alice", window_name="w"),
        engine.call(Op.CLONE, source_window="w", target_window="c"),
    ):
        with pytest.raises(CWMError, match="CWM-4001"):
            await call
    away.rename(home)
    assert (await engine.call(Op.FREEZE, session_id="alice", window_name="w"))["captured_tokens"] == 144


async def test_no_freeze_is_acknowledged_after_its_catalog_was_replaced(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    engine.settings.catalog_path.unlink()
    with pytest.raises(CWMError, match=r"CWM-4001.*removed or replaced"):
        await engine.call(Op.CLONE, source_window="w", target_window="c")
