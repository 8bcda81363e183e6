"""Two engines with homes of their own and one catalog in Redis: what one freezes the other lists, thaws and deletes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cwm_connector.catalog.base import OutcomeUnknown
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import RedisServer
from tests.support.stores import CHUNK_BYTES, forget_memory, frozen, redis_bytes, text, tiers_of

Pair = tuple[Miniature, Miniature]


async def started(home: Path, server: RedisServer) -> Miniature:
    return await Miniature.started(home, redis_url=server.url, catalog="redis")


async def follow(engine: Miniature) -> None:
    await engine.parts.shared_catalog_sync.follow(engine.engine, engine.operations.tiering)


async def listed(engine: Miniature) -> list[str]:
    return sorted(window["name"] for window in (await engine.call(Op.LIST))["windows"])


@pytest.fixture
async def pair(tmp_path: Path, server: RedisServer) -> AsyncIterator[Pair]:
    one, other = await started(tmp_path / "a", server), await started(tmp_path / "b", server)
    yield one, other
    one.close()
    other.close()


async def test_a_window_frozen_in_one_engine_is_listed_and_thawed_bit_exact_in_the_other(pair: Pair) -> None:
    one, other = pair
    await frozen(one, "w", text(1))
    assert await listed(other) == ["w"]
    assert await tiers_of(one, "w") == {"cpu": 3, "disk": 3, "redis": 3}
    assert await tiers_of(other, "w") == {"redis": 3}
    assert (await other.call(Op.LIST))["windows"][0]["storage_tier"] == "redis"
    thawed = await other.call(Op.THAW, window_name="w", new_session_id="bob")
    assert thawed["restored_by_tier"] == {"redis": 96}
    assert await other.resume(text(1), session_id="bob") == 96
    async with other.engine.chunk_lock:
        pass
    assert await tiers_of(other, "w") == {"cpu": 3, "disk": 3, "redis": 3}


async def test_chunks_that_one_engine_has_stored_are_not_stored_by_the_other(pair: Pair) -> None:
    one, other = pair
    await frozen(one, "a", text(1))
    again = await frozen(other, "b", text(1))
    assert again["new_bytes"] == 0 and redis_bytes(one) == 3 * CHUNK_BYTES
    assert not chunk_files(other.settings.home)


async def test_a_delete_in_one_engine_ends_loading_and_empties_the_disk_in_the_other(pair: Pair) -> None:
    one, other = pair
    await frozen(one, "w", text(1))
    await other.call(Op.THAW, window_name="w", new_session_id="bob")
    deleted = await other.call(Op.DELETE, window_name="w")
    assert deleted["blocks_deleted"] == 3 and redis_bytes(one) == 0
    await follow(one)
    assert await listed(one) == [] and not chunk_files(one.settings.home)
    assert await other.resume(text(1), session_id="bob") == 0


async def test_a_thawed_window_that_another_engine_deletes_is_no_longer_loaded(pair: Pair) -> None:
    one, other = pair
    await frozen(one, "w", text(1))
    await one.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await one.resume(text(1), session_id="bob") == 96
    await other.call(Op.DELETE, window_name="w")
    await follow(one)
    assert await one.resume(text(1), session_id="bob") == 0


async def test_what_one_engine_throws_away_the_other_neither_loads_nor_keeps_after_its_time(pair: Pair) -> None:
    one, other = pair
    await frozen(one, "w", text(1))
    await one.call(Op.THAW, window_name="w", new_session_id="bob")
    await other.call(Op.TRASH, window_name="w", command="rm-1")
    await follow(one)
    assert await one.resume(text(1), session_id="bob") == 0
    assert len(chunk_files(one.settings.home)) == 3
    assert (await one.call(Op.RESTORE))["window_names"] == await listed(other) == ["w"]
    await one.call(Op.TRASH, window_name="w", command="rm-2")
    (window,) = await other.catalog.run(lambda catalog: catalog.trash.listed())
    await other.operations.tiering.purge(window)
    await one.operations.tiering.purge(window)  # it is too late, and that is all right
    await follow(one)
    assert redis_bytes(one) == 0 and not chunk_files(one.settings.home)


async def test_a_chunk_deleted_by_another_engine_during_a_freeze_is_stored_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    stem = text(1)
    await frozen(one, "old", stem)
    await other.serve([*stem, *text(2)], "new")
    commit = other.operations._freezer._window_commit.commit

    async def late(new, order):
        if "old" in await listed(one):
            await one.call(Op.DELETE, window_name="old")
        return await commit(new, order)

    monkeypatch.setattr(other.operations._freezer._window_commit, "commit", late)
    result = await other.call(Op.FREEZE, session_id="new", window_name="new")
    assert result["new_bytes"] == 6 * CHUNK_BYTES
    forget_memory(other)
    assert (await other.call(Op.THAW, window_name="new"))["restorable_tokens"] == 192
    assert redis_bytes(one) == 6 * CHUNK_BYTES


async def test_two_engines_that_freeze_the_same_tokens_at_once_keep_one_copy_until_both_windows_are_gone(
    pair: Pair,
) -> None:
    one, other = pair
    await asyncio.gather(one.serve(text(1), "x"), other.serve(text(1), "y"))
    await asyncio.gather(
        one.call(Op.FREEZE, session_id="x", window_name="x"), other.call(Op.FREEZE, session_id="y", window_name="y")
    )
    assert redis_bytes(one) == 3 * CHUNK_BYTES
    await one.call(Op.DELETE, window_name="x")
    forget_memory(other)
    assert (await other.call(Op.THAW, window_name="y"))["restorable_tokens"] == 96
    await other.call(Op.DELETE, window_name="y")
    assert redis_bytes(one) == 0 and not list(one.engine.durable_tiers[TierName.REDIS].inventory())


async def test_only_one_of_two_engines_gets_a_name(pair: Pair) -> None:
    one, other = pair
    await asyncio.gather(one.serve(text(1), "x"), other.serve(text(2), "y"))
    outcomes = await asyncio.gather(
        one.call(Op.FREEZE, session_id="x", window_name="w"),
        other.call(Op.FREEZE, session_id="y", window_name="w"),
        return_exceptions=True,
    )
    refused = [each for each in outcomes if isinstance(each, CWMError)]
    assert len(refused) == 1 and refused[0].code is Code.WINDOW_EXISTS
    assert redis_bytes(one) == 3 * CHUNK_BYTES  # the loser's are gone


async def test_claims_of_an_engine_killed_during_a_freeze_are_ended_by_its_next_start(
    tmp_path: Path, server: RedisServer
) -> None:
    first = await started(tmp_path / "a", server)
    await frozen(first, "w", text(1))
    await first.serve(text(2), "s")

    async def killed(new, order):
        raise SystemExit

    first.operations._freezer._window_commit.commit = killed  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        await first.call(Op.FREEZE, session_id="s", window_name="half")
    assert redis_bytes(first) == 6 * CHUNK_BYTES
    first.close()
    later = await started(tmp_path / "a", server)
    assert redis_bytes(later) == 3 * CHUNK_BYTES and len(chunk_files(tmp_path / "a")) == 3
    assert await listed(later) == ["w"]
    later.close()


async def test_another_engine_s_collection_leaves_a_running_freeze_alone(pair: Pair) -> None:
    one, other = pair
    await one.serve(text(1), "s")
    commit = one.operations._freezer._window_commit.commit

    async def late(new, order):
        collected = await other.call(Op.COLLECT)
        assert collected["chunks_deleted"] == 0
        return await commit(new, order)

    one.operations._freezer._window_commit.commit = late  # type: ignore[method-assign]
    await one.call(Op.FREEZE, session_id="s", window_name="w")
    assert (await other.call(Op.THAW, window_name="w"))["restorable_tokens"] == 96


async def test_without_redis_windows_are_listed_and_writes_are_refused_until_it_is_back(
    pair: Pair, server: RedisServer
) -> None:
    one, _ = pair
    await frozen(one, "w", text(1))
    await one.serve(text(2), "s")
    server.kill()
    assert await listed(one) == ["w"]
    with pytest.raises(CWMError, match="CWM-5002") as refused:
        await one.call(Op.FREEZE, session_id="s", window_name="v")
    assert refused.value.retryable
    health = await one.call(Op.HEALTH)
    assert {each["name"]: each["status"] for each in health["components"]}["redis"] == "unhealthy"
    server.start()
    for _ in range(200):
        try:
            await one.call(Op.FREEZE, session_id="s", window_name="v")
            break
        except CWMError as problem:
            assert problem.code is Code.BACKEND
    assert await listed(one) == ["v", "w"]
    assert (await one.call(Op.THAW, window_name="v"))["restorable_tokens"] == 96


async def test_a_freeze_whose_outcome_is_unknown_keeps_its_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    await one.serve(text(1), "s")
    catalog = await one.catalog.run(lambda catalog: catalog)
    honest = catalog.commit_window

    def landed_but_unheard(new):
        honest(new)
        raise OutcomeUnknown(CWMError(Code.BACKEND, "lost"))

    monkeypatch.setattr(catalog, "commit_window", landed_but_unheard)
    with pytest.raises(CWMError, match="CWM-5002"):
        await one.call(Op.FREEZE, session_id="s", window_name="w")
    assert await listed(other) == ["w"]
    assert (await other.call(Op.THAW, window_name="w"))["restorable_tokens"] == 96


async def test_an_engine_starts_without_redis_and_shows_the_last_known_windows(
    tmp_path: Path, server: RedisServer
) -> None:
    first = await started(tmp_path / "a", server)
    await frozen(first, "w", text(1))
    first.close()
    server.kill()
    later = await started(tmp_path / "a", server)
    assert await listed(later) == ["w"] and (await tiers_of(later, "w"))["disk"] == 3
    with pytest.raises(CWMError, match="CWM-5002"):
        await later.call(Op.DELETE, window_name="w")
    later.close()
