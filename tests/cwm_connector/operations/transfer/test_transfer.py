"""exporter.py and importer.py together: a window goes from one engine to another."""

import asyncio
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from cwm_connector.catalog.base import ChunkRow, NewWindow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, TierName, now_micros
from cwm_connector.operations.transfer import steps
from cwm_connector.operations.transfer.exporter import Exporter
from cwm_connector.operations.transfer.importer import Importer
from cwm_connector.protocol.calls import ExportArgs, ImportArgs, Op, StatusArgs
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import read_header, seal
from cwm_mcp.api.offline import OfflineCatalog
from tests.cwm_connector.tiers.mounts import mounted
from tests.support.archives import split
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import RedisServer
from tests.support.stores import (
    CHUNK_BYTES,
    CHUNK_TOKENS,
    files_of,
    flip,
    forget_memory,
    frozen,
    hashes_of,
)
from tests.support.transfers import (
    RESTORABLE,
    TEXT,
    content_of,
    names,
)


async def test_an_imported_window_is_the_same_as_the_exported_one(
    here: Miniature, there: Miniature, file: Path
) -> None:
    imported = await there.call(Op.IMPORT, path=str(file))
    assert (imported["window_name"], imported["chunks"], imported["token_count"]) == ("w", 3, len(TEXT))
    assert (imported["new_bytes"], imported["shared_chunks"]) == (3 * CHUNK_BYTES, 0)
    assert (imported["frozen_from"], imported["exported_as"]) == ("alice", "w")
    assert {path.name: path.read_bytes() for path in chunk_files(there.settings.home)} == {
        path.name: path.read_bytes() for path in chunk_files(here.settings.home)
    }
    (window,) = (await there.call(Op.LIST))["windows"]
    assert (window["description"], window["tags"], window["session_id"]) == ("Anna's plan", ["planning"], "imported:w")
    assert (await there.call(Op.TOKENS, window_name="w")) == (await here.call(Op.TOKENS, window_name="w"))
    thawed = await there.call(Op.THAW, window_name="w", new_session_id="bob")
    assert not thawed["partial"]
    assert await there.resume(TEXT, session_id="bob") == RESTORABLE  # which compares every page
    assert await there.resume(TEXT, session_id="alice", salt="hers") == 0
    await there.catalog.run(lambda catalog: catalog.check_integrity())


async def test_a_proof_travels_with_its_window(here: Miniature, there: Miniature, file: Path, tmp_path: Path) -> None:
    await there.call(Op.IMPORT, path=str(file))
    assert "proof" not in split(content_of(file))[0], "as in the files of versions without proofs"
    assert "proof" not in await there.call(Op.STATUS, window_name="w")
    frozen = await here.call(Op.FREEZE, session_id="alice", window_name="proven", prove=True)
    await here.call(Op.EXPORT, window_name="proven", path=str(tmp_path / "proven.cwm"))
    await there.call(Op.IMPORT, path=str(tmp_path / "proven.cwm"))
    assert (await there.call(Op.STATUS, window_name="proven"))["proof"] == frozen["proof"]
    assert (await there.call(Op.PROVE, window_name="proven"))["proof"] == "equal"


async def test_where_an_imported_window_came_from_stays_known(
    here: Miniature, there: Miniature, file: Path, tmp_path: Path
) -> None:
    """Also after a rename, for a clone, in the trash, for the next home, and to a client without an engine."""
    frozen_at = (await here.call(Op.STATUS, window_name="w"))["timestamps"]["frozen_at"]
    assert (await there.call(Op.IMPORT, path=str(file), window_name="from-anna"))["frozen_at"] == frozen_at
    await there.call(Op.TAG, window_name="from-anna", new_name="hers")
    await there.call(Op.CLONE, source_window="hers", target_window="mine")
    await there.call(Op.TRASH, window_name="hers", command="rm")
    await there.call(Op.RESTORE)
    origin = {"exported_as": "w", "frozen_from": "alice"}
    for name, made_by in (("hers", "import"), ("mine", "clone")):
        status = await there.call(Op.STATUS, window_name=name)
        assert (status["made_by"], status["origin"]) == (made_by, origin)
        assert status["timestamps"]["frozen_at"] == frozen_at < status["timestamps"]["created_at"]
        offline = to_builtins(OfflineCatalog(there.settings.catalog_path).status(StatusArgs(window_name=name)))
        assert (offline["made_by"], offline["origin"]) == (made_by, origin)
    assert (await there.call(Op.STATUS, window_name="hers"))["session_id"] == "imported:from-anna"
    await there.call(Op.EXPORT, window_name="hers", path=str(tmp_path / "again.cwm"))
    again = await here.call(Op.IMPORT, path=str(tmp_path / "again.cwm"))
    assert (again["exported_as"], again["frozen_from"], again["frozen_at"]) == ("hers", "alice", frozen_at)
    own = await here.call(Op.STATUS, window_name="w")
    assert own["made_by"] == "freeze" and "origin" not in own
    await there.catalog.run(lambda catalog: catalog.check_integrity())


async def test_an_imported_window_outlives_a_restart_and_its_source(
    here: Miniature, file: Path, tmp_path: Path
) -> None:
    await here.call(Op.DELETE, window_name="w")
    assert chunk_files(here.settings.home) == []
    one = await Miniature.started(tmp_path / "later")
    await one.call(Op.IMPORT, path=str(file))
    one.close()
    one = await Miniature.started(tmp_path / "later")
    thawed = await one.call(Op.THAW, window_name="w")
    assert thawed["restored_by_tier"] == {"disk": RESTORABLE}
    assert await one.resume(TEXT, session_id=thawed["session_id"]) == RESTORABLE
    one.close()


def aligned(content: bytes) -> memoryview:
    buffer = steps.new_buffer(len(content))
    buffer[:] = content
    return buffer


async def test_the_parts_of_every_rank_are_in_the_file(here: Miniature, there: Miniature, file: Path) -> None:
    """Two ranks' store, with no workers over it: export and import read and write it themselves."""
    await frozen(here, "one-rank", TEXT)
    one = (await here.catalog.run(lambda catalog: catalog.chunks_of("one-rank")))[0]
    (path,) = files_of(here.settings.home, [one.key.hex()])
    ranks = [aligned(content_of(path)) for _ in range(2)]
    seal(ranks[1], replace(read_header(ranks[1]), kv_rank=1))
    await here.call(Op.DELETE, window_name="one-rank")
    await here.call(Op.DELETE, window_name="w")
    for rank, sealed in enumerate(ranks):
        here.disk.write(ChunkId(one.key, rank), sealed).result()
    new = NewWindow(
        name="two-ranks",
        description="",
        tags=(),
        model="small",
        passport=here.engine.passport.fields,
        session_id="s",
        head="",
        parent=None,
        token_ids=array("i", TEXT).tobytes(),
        restorable_tokens=CHUNK_TOKENS,
        chunks=[one.key],
        stored=[ChunkRow(one.key, CHUNK_TOKENS, 2 * CHUNK_BYTES)],
        created_at=now_micros(),
    )
    await here.catalog.run(lambda catalog: catalog.commit_window(new))
    exporter = Exporter(replace(here.engine, world_size=2), here.operations.tiering)
    await exporter.export(ExportArgs("two-ranks", str(file), force=True), lambda *_: None)
    importer = Importer(replace(there.engine, world_size=2), there.operations.tiering)
    imported = await importer.import_window(ImportArgs(str(file)), lambda *_: None)
    assert imported.new_bytes == 2 * CHUNK_BYTES
    assert [content_of(path) for path in chunk_files(there.settings.home)] == ranks
    flip(chunk_files(here.settings.home)[1])
    with pytest.raises(CWMError, match="CWM-4004"):
        await exporter.export(ExportArgs("two-ranks", str(file), force=True), lambda *_: None)


async def test_an_import_into_a_shared_catalog_is_in_redis_before_it_is_visible(
    tmp_path: Path, file: Path, server: RedisServer
) -> None:
    one = await Miniature.started(tmp_path / "one", redis_url=server.url, catalog="redis")
    other = await Miniature.started(tmp_path / "other", redis_url=server.url, catalog="redis")
    await one.call(Op.IMPORT, path=str(file))
    one.close()
    thawed = await other.call(Op.THAW, window_name="w", new_session_id="bob")
    assert thawed["restored_by_tier"] == {"redis": RESTORABLE}
    assert await other.resume(TEXT, session_id="bob") == RESTORABLE
    other.close()


async def test_a_full_disk_refuses_export_and_import_and_leaves_nothing(
    here: Miniature, file: Path, tmp_path: Path
) -> None:
    with mounted("tmpfs", tmp_path / "small", size_mib=1) as folder:
        (folder / "filler").write_bytes(bytes((1 << 20) - 2 * CHUNK_BYTES))
        with pytest.raises(CWMError, match="CWM-4003"):
            await here.call(Op.EXPORT, window_name="w", path=str(folder / "w.cwm"))
        assert [path.name for path in folder.iterdir()] == ["filler"]
        (folder / "store").mkdir()
        full = await Miniature.started(tmp_path / "full", disk_path=str(folder / "store"))
        with pytest.raises(CWMError, match="CWM-4003"):
            await full.call(Op.IMPORT, path=str(file))
        assert await names(full) == [] and not list((folder / "store").glob("*.data"))
        (folder / "filler").unlink()
        assert (await full.call(Op.IMPORT, path=str(file)))["new_bytes"] == 3 * CHUNK_BYTES
        full.close()


async def test_imports_freezes_and_deletes_at_once_leave_every_window_whole(there: Miniature, file: Path) -> None:
    await there.serve(TEXT, "bob")
    calls: list[Any] = []
    for turn in range(5):
        calls += [
            there.call(Op.IMPORT, path=str(file), window_name=f"i{turn}"),
            there.call(Op.FREEZE, session_id="bob", window_name=f"f{turn}"),
            there.call(Op.DELETE, window_name=f"i{turn - 1}"),
            there.call(Op.IMPORT, path=str(file), window_name="same"),
        ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {each.code for each in outcomes if isinstance(each, CWMError)} <= {Code.WINDOW_NOT_FOUND, Code.WINDOW_EXISTS}
    assert not [each for each in outcomes if isinstance(each, BaseException) and not isinstance(each, CWMError)]
    forget_memory(there)
    for name in await names(there):
        thawed = await there.call(Op.THAW, window_name=name, new_session_id="reader")
        assert thawed["restorable_tokens"] == RESTORABLE and not thawed["partial"]
    assert len(chunk_files(there.settings.home)) == 3
    keys = [ChunkKey(bytes.fromhex(each)) for each in await hashes_of(there, "same")]
    assert all(there.engine.locations.holds(TierName.DISK, key) for key in keys)
