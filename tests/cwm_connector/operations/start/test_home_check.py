"""What a start leaves to check goes on while the engine serves, and no window refers to bytes that are gone."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from cwm_connector.catalog.sqlite.check import Unfinished
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.operations.build import start_operations
from cwm_connector.operations.start import home_check
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature, chunk_files
from tests.support.stores import CHUNK_BYTES, frozen, text


@asynccontextmanager
async def serving(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Miniature]:
    """An engine whose home is still to be checked: the check waits for `chunk_lock`."""
    one = Miniature(home)
    monkeypatch.setattr(home_check, "START_WAITS_S", 0)
    await one.engine.chunk_lock.acquire()
    try:
        one.operations = await start_operations(one.engine)
        yield one
    finally:
        one.close()


async def filled(home: Path) -> None:
    one = await Miniature.started(home)
    await frozen(one, "w", text(1))
    one.close()


async def test_an_engine_serves_while_its_home_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(tmp_path)
    lost, *_ = chunk_files(tmp_path)
    lost.unlink()
    (lost.parent / f"cwm@0x00000000@0@{'ab' * 32}.data").write_bytes(b"an orphan")
    async with serving(tmp_path, monkeypatch) as engine:
        assert (await engine.call(Op.LIST))["total"] == 1
        (catalog,) = (await engine.call(Op.HEALTH, component="catalog"))["components"]
        assert catalog["status"] == "healthy" and "still being checked" in catalog["message"]
        engine.engine.chunk_lock.release()
        await engine.operations.home_check.wait()
        rows = await engine.catalog.run(lambda catalog: catalog.chunks_of("w"))
        assert sorted(len(row.tiers) for row in rows) == [0, 1, 1]
        assert len(chunk_files(tmp_path)) == 2
        (catalog,) = (await engine.call(Op.HEALTH, component="catalog"))["components"]
        assert "still being checked" not in catalog["message"]


async def test_a_freeze_stores_again_what_is_gone_before_the_check_has_come_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path)
    chunk_files(tmp_path)[1].unlink()
    async with serving(tmp_path, monkeypatch) as engine:
        await engine.serve(text(1), "s")
        engine.engine.chunk_lock.release()
        result = await engine.call(Op.FREEZE, session_id="s", window_name="again")
        assert result["new_bytes"] == CHUNK_BYTES
        assert len(chunk_files(tmp_path)) == 3
        await engine.operations.home_check.wait()
        rows = await engine.catalog.run(lambda catalog: catalog.chunks_of("again"))
        assert [row.tiers for row in rows] == [{TierName.DISK}] * 3


async def test_a_chunk_that_was_frozen_after_the_list_is_neither_lost_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path)
    async with serving(tmp_path, monkeypatch) as engine:
        listed = asyncio.Event()
        go_on = asyncio.Event()
        carry_out = home_check._carry_out

        async def and_wait(step, steps):
            proceed = await carry_out(step, steps)
            if not step.locked:
                listed.set()
                await go_on.wait()
            return proceed

        monkeypatch.setattr(home_check, "_carry_out", and_wait)
        engine.engine.chunk_lock.release()
        await listed.wait()
        await frozen(engine, "new", text(2))
        await engine.call(Op.DELETE, window_name="w")
        go_on.set()
        await engine.operations.home_check.wait()
        assert engine.operations.home_check.fault is None
        rows = await engine.catalog.run(lambda catalog: catalog.all_chunks())
        assert [row.tiers for row in rows] == [{TierName.DISK}] * 3
        assert len(chunk_files(tmp_path)) == 3


async def test_damage_that_is_found_while_the_engine_serves_stops_writes_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as raw:
        (root,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_chunks_1'").fetchone()
    with (tmp_path / "catalog.sqlite").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\x0a" + bytes(2) + bytes(2) + b"\x10\x00" + bytes(1) + bytes(4088))  # an index without entries
    monkeypatch.setattr("cwm_connector.catalog.sqlite.file.structural_damage", unfinished)
    async with serving(tmp_path, monkeypatch) as engine:
        engine.engine.chunk_lock.release()
        await engine.operations.home_check.wait()
        assert len(chunk_files(tmp_path)) == 3
        (catalog,) = (await engine.call(Op.HEALTH, component="catalog"))["components"]
        assert catalog["status"] == "degraded" and "is damaged" in catalog["message"]
        assert (await engine.call(Op.LIST))["total"] == 1
        with pytest.raises(CWMError) as refused:
            await engine.call(Op.TAG, window_name="w", add=["a"])
        assert refused.value.code is Code.CORRUPT


def unfinished(*_: object) -> None:
    raise Unfinished
