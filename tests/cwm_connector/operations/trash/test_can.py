"""can.py: what `cwm rm` deletes stays whole for a while, out of everybody's sight, and comes back whole."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import free_bytes
from cwm_connector.core.types import Micros, now_micros
from cwm_connector.core.units import GIB
from cwm_connector.protocol.calls import Op
from cwm_mcp.api.offline import OfflineCatalog
from tests.cwm_connector.tiers.mounts import mounted
from tests.support.miniature import Miniature
from tests.support.redis_server import RedisServer
from tests.support.stores import CHUNK_BYTES, frozen, on_disk, text, tiers_of

RESTORES: Final[list[dict[str, Any]]] = [{}, {"window_name": "w"}]


async def trash(engine: Miniature, *names: str, command: str = "rm-1") -> None:
    for name in names:
        await engine.call(Op.TRASH, window_name=name, command=command)


async def trashed(engine: Miniature) -> list[str]:
    return [each["window_name"] for each in (await engine.call(Op.TRASH_LIST))["windows"]]


async def test_nothing_loads_from_the_trash_and_all_of_a_window_that_came_back(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    before = on_disk(engine)
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    answer = await engine.call(Op.TRASH, window_name="w", command="rm-1")
    assert (answer["window_name"], answer["space_freed_bytes"]) == ("w", 0)
    assert await engine.resume(text(1), session_id="bob") == 0
    assert (await engine.call(Op.LIST))["total"] == 0
    assert (await engine.call(Op.COLLECT))["chunks_deleted"] == 0 and on_disk(engine) == before
    verified = await engine.call(Op.VERIFY, restart=True)
    assert (verified["bad_copies"], verified["chunks"]) == (0, 3)
    listed = (await engine.call(Op.TRASH_LIST))["windows"][0]
    assert listed["kept_until"] == answer["kept_until"] > listed["deleted_at"]
    assert (await engine.call(Op.RESTORE))["window_names"] == ["w"]
    await engine.call(Op.THAW, window_name="w", new_session_id="eve")
    assert await engine.resume(text(1), session_id="eve") == 96


async def test_the_windows_of_one_command_come_back_together(engine: Miniature) -> None:
    for number, name in enumerate(("a", "b", "c")):
        await frozen(engine, name, text(number))
    await trash(engine, "a", command="rm-1")
    await trash(engine, "b", "c", command="rm-2")
    assert await trashed(engine) == ["c", "b", "a"]
    assert (await engine.call(Op.RESTORE))["window_names"] == ["b", "c"]
    assert (await engine.call(Op.RESTORE, window_name="a", new_name="d"))["window_names"] == ["d"]
    with pytest.raises(CWMError, match="the trash is empty"):
        await engine.call(Op.RESTORE)


async def test_the_name_of_a_window_in_the_trash_can_be_frozen_again(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    await trash(engine, "w")
    await frozen(engine, "w", text(2))
    with pytest.raises(CWMError, match="cwm undo w --as OTHER") as problem:
        await engine.call(Op.RESTORE)
    assert problem.value.code is Code.WINDOW_EXISTS
    with pytest.raises(CWMError, match="CWM-1"):
        await engine.call(Op.RESTORE, new_name="other")
    assert await trashed(engine) == ["w"]


async def test_a_freeze_under_way_keeps_its_name(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    await trash(engine, "w")
    with engine.engine.freezes.begin("w", lambda done, total, text: None):
        for args in RESTORES:
            with pytest.raises(CWMError, match="window_status") as problem:
                await engine.call(Op.RESTORE, **args)
            assert problem.value.code is Code.WINDOW_EXISTS


async def test_what_was_in_the_trash_long_enough_is_gone_for_good(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    await frozen(engine, "old", text(1))
    await frozen(engine, "new", text(2))
    await trash(engine, "old")
    await engine.operations.trash.expire()
    assert await trashed(engine) == ["old"]
    kept = 24 * 3600 * 1_000_000
    monkeypatch.setattr("cwm_connector.operations.trash.can.now_micros", lambda: Micros(now_micros() + kept))
    await trash(engine, "new")
    await engine.operations.trash.expire()
    assert await trashed(engine) == ["new"]
    assert on_disk(engine) == 3 * CHUNK_BYTES


async def test_without_a_time_to_keep_it_a_window_is_deleted_at_once(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, trash_hours=0)
    await frozen(engine, "w", text(1))
    answer = await engine.call(Op.TRASH, window_name="w", command="rm-1")
    assert (answer["kept_until"], answer["space_freed_bytes"]) == (None, 3 * CHUNK_BYTES)
    assert on_disk(engine) == 0
    engine.close()


def behind_the_index(path: Path, change: str) -> None:
    """Change a row of the trash as a flipped bit would: the index of the snapshots does not learn of it."""
    rewrite = "UPDATE sqlite_master SET sql = ? WHERE name = 'trash_by_snapshot'"
    for sql, then in (
        ("CREATE INDEX trash_by_snapshot ON trash (snapshot_id) WHERE 0", ""),
        ("CREATE INDEX trash_by_snapshot ON trash (snapshot_id)", f"UPDATE trash SET {change} WHERE name = 'hurt'"),
    ):
        with closing(sqlite3.connect(path)) as raw, raw:
            raw.execute(then)
            raw.execute("PRAGMA writable_schema = ON")
            raw.execute(rewrite, (sql,))
            (version,) = raw.execute("PRAGMA schema_version").fetchone()
            raw.execute(f"PRAGMA schema_version = {version + 1}")


@pytest.mark.parametrize("snapshot_is_known", [True, False])
async def test_a_damaged_window_leaves_the_trash_in_time_and_holds_up_no_other(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch, snapshot_is_known: bool
) -> None:
    for number, name in enumerate(("hurt", "sound")):
        await frozen(engine, name, text(number))
    await trash(engine, "hurt", "sound")
    behind_the_index(engine.settings.catalog_path, "snapshot_id = 99" if not snapshot_is_known else "token_count = 1")
    assert await trashed(engine) == ["sound"]
    kept = 24 * 3600 * 1_000_000
    monkeypatch.setattr("cwm_connector.operations.trash.can.now_micros", lambda: Micros(now_micros() + kept))
    await engine.operations.trash.expire()
    assert await trashed(engine) == []
    left = {window.name for window in await engine.catalog.run(lambda catalog: catalog.trash.listed())}
    assert left == (set() if snapshot_is_known else {"hurt"})
    assert on_disk(engine) == (0 if snapshot_is_known else 3 * CHUNK_BYTES)


async def test_statistics_and_health_say_what_the_trash_holds(engine: Miniature) -> None:
    async def said() -> tuple[Any, str]:
        (catalog,) = (await engine.call(Op.HEALTH, component="catalog"))["components"]
        offline = OfflineCatalog(engine.settings.catalog_path).stats().kv_store.trash
        stats = (await engine.call(Op.STATS))["kv_store"]["trash"]
        assert stats == msgspec.to_builtins(offline)
        return stats, catalog["message"]

    await frozen(engine, "long", text(1, chunks=5))
    await frozen(engine, "short", text(1, chunks=3))
    assert await said() == ({"windows": 0, "bytes": 0}, "2 windows, 5 chunks")
    await trash(engine, "long")
    assert await said() == (
        {"windows": 1, "bytes": 2 * CHUNK_BYTES},
        "1 windows, 5 chunks, 1 more in the trash",
    )
    await trash(engine, "short")
    assert (await said())[0] == {"windows": 2, "bytes": 5 * CHUNK_BYTES} and on_disk(engine) == 5 * CHUNK_BYTES


async def test_a_full_file_system_takes_the_oldest_of_the_trash(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "small", size_mib=1) as folder:
        engine = await Miniature.started(tmp_path / "home", disk_path=str(folder))
        for number in range(3):
            await frozen(engine, f"w{number}", text(number, chunks=10))
        await trash(engine, "w0", "w1")
        (folder / "filler").write_bytes(bytes(free_bytes(folder) - 2 * CHUNK_BYTES))
        await frozen(engine, "new", text(9, chunks=4))
        assert await trashed(engine) == ["w1"]
        with pytest.raises(CWMError, match="CWM-4003"):
            await frozen(engine, "huge", text(8, chunks=22))
        assert await trashed(engine) == ["w1"], "which would not have been enough"
        for name in ("w2", "new"):
            assert not (await engine.call(Op.THAW, window_name=name))["partial"]
        engine.close()


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Miniature]:
    """An engine whose disk tier has room for ten chunks and whose windows have nowhere else to go."""
    one = await Miniature.started(tmp_path, disk_cache_gb=10 * CHUNK_BYTES / GIB)
    yield one
    one.close()


async def test_a_freeze_that_needs_room_takes_the_oldest_of_the_trash_and_no_more(small: Miniature) -> None:
    for number in range(3):
        await frozen(small, f"w{number}", text(number))
    await trash(small, "w1", command="rm-1")
    await trash(small, "w0", command="rm-2")
    await frozen(small, "new", text(9))
    assert await trashed(small) == ["w0"]
    assert on_disk(small) == 9 * CHUNK_BYTES
    for name in ("w2", "new"):
        assert (await small.call(Op.THAW, window_name=name))["restorable_tokens"] == 96


async def test_the_trash_stays_if_it_makes_no_room_for_a_freeze(small: Miniature) -> None:
    for number in range(2):
        await frozen(small, f"w{number}", text(number, chunks=4))
    await frozen(small, "short", text(5, chunks=1))
    await trash(small, "short")
    for chunks in (4, 11):
        with pytest.raises(CWMError, match="CWM-4003"):
            await frozen(small, "huge", text(9, chunks=chunks))
    assert await trashed(small) == ["short"]


async def test_a_freeze_keeps_the_chunks_of_the_trash_that_it_needs_itself(small: Miniature) -> None:
    await frozen(small, "w", text(1, chunks=6))
    rows = await small.catalog.run(lambda catalog: catalog.chunks_of("w"))
    needed = frozenset(row.key for row in rows[:4])
    await trash(small, "w")
    async with small.engine.chunk_lock:
        await small.operations.tiering.make_room(6 * CHUNK_BYTES, needed)
        stored = await small.catalog.run(lambda catalog: catalog.stored([row.key for row in rows]))
    assert await trashed(small) == []
    assert stored.keys() == needed and on_disk(small) == 4 * CHUNK_BYTES


async def test_what_is_in_the_trash_goes_before_a_window_leaves_the_disk(tmp_path: Path, server: RedisServer) -> None:
    engine = await Miniature.started(tmp_path, redis_url=server.url, disk_cache_gb=7 * CHUNK_BYTES / GIB)
    await frozen(engine, "cold", text(1))
    await frozen(engine, "thrown", text(2))
    await trash(engine, "thrown")
    await frozen(engine, "new", text(3))
    assert await trashed(engine) == []
    assert "redis" not in await tiers_of(engine, "cold")
    engine.close()


async def test_the_trash_outlives_a_restart(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await frozen(first, "w", text(1))
    await trash(first, "w")
    first.close()
    second = await Miniature.started(tmp_path)
    assert on_disk(second) == 3 * CHUNK_BYTES
    assert (await second.call(Op.RESTORE))["window_names"] == ["w"]
    assert (await second.call(Op.THAW, window_name="w"))["restorable_tokens"] == 96
    second.close()
