"""exporter.py, importer.py: a window goes from one store to another as a file, whole or not at all."""

import asyncio
import hashlib
import multiprocessing
import os
import random
import signal
import socket
import stat
import struct
import time
from array import array
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.catalog.base import ChunkRow, NewWindow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import Passport
from cwm_connector.core.types import ChunkKey, TierName, now_micros
from cwm_connector.operations.transfer import archive_files, steps
from cwm_connector.operations.transfer.archive import PREFIX_BYTES, TRAILER_BYTES, ArchiveHeader
from cwm_connector.operations.transfer.exporter import Exporter
from cwm_connector.operations.transfer.importer import Importer
from cwm_connector.protocol.calls import ExportArgs, ImportArgs, Op
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import read_header, seal
from tests.cwm_connector.tiers.mounts import mounted
from tests.support.archives import joined, split
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import RedisServer
from tests.support.stores import (
    CHUNK_BYTES,
    CHUNK_TOKENS,
    demote,
    files_of,
    flip,
    forget_memory,
    frozen,
    hashes_of,
    text,
)

TEXT = [*text(1), *range(7, 12)]
"""Three whole chunks, and a rest that no block holds."""
RESTORABLE = 96


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path / "here")
    yield one
    one.close()


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path / "there")
    yield one
    one.close()


@pytest.fixture
async def file(here: Miniature, tmp_path: Path) -> Path:
    """Window `w` of `here`, exported."""
    await here.serve(TEXT, "alice")
    tags = ["planning"]
    await here.call(Op.FREEZE, session_id="alice", window_name="w", description="Anna's plan", tags=tags)
    path = tmp_path / "w.cwm"
    await here.call(Op.EXPORT, window_name="w", path=str(path))
    return path


async def filled(home: Path) -> None:
    """A store with window `w`, and no engine over it."""
    one = await Miniature.started(home)
    await frozen(one, "w", TEXT)
    one.close()


async def names(engine: Miniature) -> list[str]:
    return sorted(window["name"] for window in (await engine.call(Op.LIST))["windows"])


async def refused(engine: Miniature, code: Code, path: Path, **args: Any) -> CWMError:
    """An import that ends with this code and leaves nothing behind."""
    before, files = await names(engine), chunk_files(engine.settings.home)
    with pytest.raises(CWMError) as problem:
        await engine.call(Op.IMPORT, path=str(path), **args)
    assert problem.value.code is code, problem.value
    assert await names(engine) == before and chunk_files(engine.settings.home) == files
    assert not engine.engine.chunk_lock.locked()
    return problem.value


def content_of(file: Path) -> bytes:
    return file.read_bytes()


def put(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def partial_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(archive_files.PARTIAL)]


# --- there and back --------------------------------------------------------------------------------------------------


async def test_a_window_is_the_same_in_another_store(here: Miniature, there: Miniature, file: Path) -> None:
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
    assert await there.resume(TEXT, session_id="alice") == 0
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


async def test_only_what_is_missing_is_stored(here: Miniature, there: Miniature, file: Path) -> None:
    before = [path.stat().st_ino for path in chunk_files(here.settings.home)]
    again = await here.call(Op.IMPORT, path=str(file), window_name="again")
    assert (again["new_bytes"], again["shared_chunks"]) == (0, 3)
    assert [path.stat().st_ino for path in chunk_files(here.settings.home)] == before
    await frozen(there, "common", [*TEXT[:64], *text(5, chunks=1)])
    imported = await there.call(Op.IMPORT, path=str(file))
    assert (imported["new_bytes"], imported["shared_chunks"]) == (CHUNK_BYTES, 2)
    await there.call(Op.DELETE, window_name="common")
    forget_memory(there)
    await there.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await there.resume(TEXT, session_id="bob") == RESTORABLE


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
    assert imported["new_bytes"] == 2 * CHUNK_BYTES
    assert [content_of(path) for path in chunk_files(there.settings.home)] == ranks
    flip(chunk_files(here.settings.home)[1])
    with pytest.raises(CWMError, match="CWM-4004"):
        await exporter.export(ExportArgs("two-ranks", str(file), force=True), lambda *_: None)


def aligned(content: bytes) -> memoryview:
    buffer = steps.new_buffer(len(content))
    buffer[:] = content
    return buffer


async def test_name_and_tags_can_be_others(there: Miniature, file: Path) -> None:
    await there.call(Op.IMPORT, path=str(file), window_name="from-anna", tags=["anna", "planning"])
    (window,) = (await there.call(Op.LIST))["windows"]
    assert (window["name"], sorted(window["tags"])) == ("from-anna", ["anna", "planning"])


async def test_the_file_is_private_and_its_length_is_told(here: Miniature, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.cwm"
    progress: list[tuple[int, int]] = []
    exported = await here.call(
        Op.EXPORT, lambda done, total, _: progress.append((done, total)), window_name="w", path=str(path)
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert exported["bytes"] == path.stat().st_size and exported["chunks"] == 3
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert partial_files(tmp_path) == []


async def test_a_clone_and_a_partly_evicted_window_are_exported_too(
    here: Miniature, there: Miniature, file: Path
) -> None:
    await here.call(Op.CLONE, source_window="w", target_window="c", tags=["clone"])
    path = file.with_name("c.cwm")
    await here.call(Op.EXPORT, window_name="c", path=str(path))
    assert (await there.call(Op.IMPORT, path=str(path)))["window_name"] == "c"
    assert (await there.call(Op.IMPORT, path=str(file)))["new_bytes"] == 0


async def test_a_window_cut_by_another_setting_is_exported_and_refused_where_it_does_not_fit(
    tmp_path: Path,
) -> None:
    await filled(tmp_path / "home")
    other = await Miniature.started(tmp_path / "home", chunk_tokens=64)
    path = tmp_path / "cut.cwm"
    await other.call(Op.EXPORT, window_name="w", path=str(path))
    problem = await refused(other, Code.PASSPORT, path, window_name="v")
    assert problem.context == {"field": "chunk_tokens", "engine": "64", "window": "32"}
    other.close()
    same = await Miniature.started(tmp_path / "same")
    assert (await same.call(Op.IMPORT, path=str(path)))["chunks"] == 3
    same.close()


# --- tiers -----------------------------------------------------------------------------------------------------------


async def test_chunks_are_exported_from_redis(tmp_path: Path, there: Miniature, server: RedisServer) -> None:
    cold = await Miniature.started(tmp_path / "cold", redis_url=server.url)
    await frozen(cold, "w", TEXT)
    await demote(cold, "w")
    forget_memory(cold)
    path = tmp_path / "w.cwm"
    await cold.call(Op.EXPORT, window_name="w", path=str(path))
    assert chunk_files(cold.settings.home) == []
    server.kill()
    with pytest.raises(CWMError, match="CWM-5002"):
        await cold.call(Op.EXPORT, window_name="w", path=str(tmp_path / "v.cwm"))
    cold.close()
    await there.call(Op.IMPORT, path=str(path))
    await there.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await there.resume(TEXT, session_id="bob") == RESTORABLE


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


async def test_a_bad_copy_is_replaced_from_memory_before_it_is_exported(here: Miniature, file: Path) -> None:
    (path,) = files_of(here.settings.home, (await hashes_of(here, "w"))[1:2])
    sound = path.read_bytes()
    flip(path)
    await here.call(Op.EXPORT, window_name="w", path=str(file), force=True)
    assert path.read_bytes() == sound and sound in content_of(file)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
async def test_what_cannot_be_verified_is_not_exported(here: Miniature, file: Path, damage: str) -> None:
    (path,) = files_of(here.settings.home, (await hashes_of(here, "w"))[2:3])
    {"flip": flip, "cut": lambda path: os.truncate(path, 4096), "gone": Path.unlink}[damage](path)
    forget_memory(here)
    target = file.with_name("damaged.cwm")
    with pytest.raises(CWMError) as problem:
        await here.call(Op.EXPORT, window_name="w", path=str(target))
    assert problem.value.code in (Code.CORRUPT, Code.CHUNK_MISSING)
    assert not target.exists() and partial_files(target.parent) == []


async def test_a_window_deleted_meanwhile_ends_the_export(here: Miniature, file: Path) -> None:
    target = file.with_name("late.cwm")
    deleting: list[asyncio.Task[Any]] = []

    def delete(done: int, *_: object) -> None:
        if done == 1:
            deleting.append(asyncio.create_task(here.call(Op.DELETE, window_name="w")))

    append = here.operations._exporter._append

    async def slow(*args: Any) -> None:
        if deleting:
            await deleting[0]
        await append(*args)

    here.operations._exporter._append = slow  # type: ignore[assignment]
    with pytest.raises(CWMError, match="CWM-2002"):
        await here.call(Op.EXPORT, delete, window_name="w", path=str(target))
    assert not target.exists() and partial_files(target.parent) == []


# --- what does not fit -----------------------------------------------------------------------------------------------


async def test_another_engine_s_window_is_refused_with_the_field_and_both_values(tmp_path: Path, file: Path) -> None:
    other = await Miniature.started(tmp_path / "other", passport=Passport({"weights": "large", "format": "1"}))
    problem = await refused(other, Code.PASSPORT, file)
    assert problem.context == {"field": "weights", "engine": "large", "window": "small"}
    assert "large" in problem.message and "small" in problem.message
    other.close()


async def test_a_window_of_another_passport_is_not_exported(tmp_path: Path) -> None:
    await filled(tmp_path / "home")
    other = await Miniature.started(tmp_path / "home", passport=Passport({"weights": "large", "format": "1"}))
    with pytest.raises(CWMError, match=r"CWM-5003.*weights"):
        await other.call(Op.EXPORT, window_name="w", path=str(tmp_path / "x.cwm"))
    other.close()


@pytest.mark.parametrize(("field", "value"), [("model", "tiny"), ("block_tokens", 8), ("chunk_tokens", 64)])
async def test_model_and_geometry_have_to_agree(there: Miniature, file: Path, field: str, value: Any) -> None:
    fields, parts = split(content_of(file))
    chunks = fields["chunks"]
    if field == "chunk_tokens":  # a file that is consistent in itself
        chunks = [[chunks[0][0], 64, [4096 + 2 * (CHUNK_BYTES - 4096)]]]
        fields["restorable_tokens"], parts = 64, parts[: 4096 + 2 * (CHUNK_BYTES - 4096)]
    put(file, joined(fields | {field: value, "chunks": chunks}, parts))
    problem = await refused(there, Code.PASSPORT, file)
    assert problem.context["field"] == field and str(problem.context["window"]) == str(value)


async def test_a_file_of_more_ranks_is_refused(there: Miniature, file: Path) -> None:
    fields, parts = split(content_of(file))
    chunks = [[key, tokens, sizes * 2] for key, tokens, sizes in fields["chunks"]]
    put(file, joined(fields | {"chunks": chunks}, parts * 2))
    assert (await refused(there, Code.PASSPORT, file)).context["field"] == "ranks"


@pytest.mark.parametrize("layout", ["NHD:" + "ab" * 32, "NHD:right"])
async def test_pages_laid_out_otherwise_than_the_passport_says_are_refused(tmp_path: Path, layout: str) -> None:
    """Every part says how its pages lie; all ranks' together are in the passport."""
    probe = await Miniature.started(tmp_path / "probe")
    own = hashlib.sha256(probe.worker._shape.layout).hexdigest()
    probe.close()
    passport = Passport({"weights": "small", "layout": layout.replace("right", own)})
    one = await Miniature.started(tmp_path / "one", passport=passport)
    await frozen(one, "w", TEXT)
    await one.call(Op.EXPORT, window_name="w", path=str(tmp_path / "w.cwm"))
    other = await Miniature.started(tmp_path / "other", passport=passport)
    if layout.endswith("right"):
        await other.call(Op.IMPORT, path=str(tmp_path / "w.cwm"))
    else:
        await refused(other, Code.CORRUPT, tmp_path / "w.cwm")
    one.close()
    other.close()


async def test_a_taken_name_is_refused(here: Miniature, there: Miniature, file: Path) -> None:
    await refused(here, Code.WINDOW_EXISTS, file)
    await refused(there, Code.WINDOW_NAME, file, window_name=".hidden")
    await refused(there, Code.ARGUMENT, file, tags=["no tag"])


async def test_the_disk_s_limit_refuses_an_import_whole(tmp_path: Path, file: Path) -> None:
    small = await Miniature.started(tmp_path / "small", disk_cache_gb=2.5 * CHUNK_BYTES / (1 << 30))
    problem = await refused(small, Code.QUOTA, file)
    assert problem.context["needed_bytes"] == 3 * CHUNK_BYTES
    small.close()


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


# --- hostile files ---------------------------------------------------------------------------------------------------


async def test_no_flipped_bit_makes_a_window(there: Miniature, file: Path) -> None:
    sound, dice = content_of(file), random.Random(3)
    for _ in range(30):
        content = bytearray(sound)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        put(file, bytes(content))
        with pytest.raises(CWMError):
            await there.call(Op.IMPORT, path=str(file))
    assert await names(there) == [] and chunk_files(there.settings.home) == []


@pytest.mark.parametrize("at", [-1, -33])
async def test_the_digest_at_the_end_decides(there: Miniature, file: Path, at: int) -> None:
    content = bytearray(content_of(file))
    content[at] ^= 1
    put(file, bytes(content))
    await refused(there, Code.CORRUPT, file)


async def forged(
    engine: Miniature, file: Path, change: Callable[[dict[str, Any], bytes], tuple[Any, bytes]]
) -> CWMError:
    """A file whose digests are right and whose content is not."""
    put(file, joined(*change(*split(content_of(file)))))
    return await refused(engine, Code.CORRUPT, file)


async def test_chunks_under_other_keys_than_their_tokens_are_refused(there: Miniature, file: Path) -> None:
    def other_tokens(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        tokens = struct.pack("<i", 77) + fields["token_ids"][4:]
        return fields | {"token_ids": tokens}, parts

    assert "not those of its tokens" in (await forged(there, file, other_tokens)).message


async def test_negative_tokens_are_refused(there: Miniature, file: Path) -> None:
    def negative(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        return fields | {"token_ids": fields["token_ids"][:-4] + struct.pack("<i", -1)}, parts

    await forged(there, file, negative)


async def test_swapped_and_foreign_chunks_are_refused(here: Miniature, there: Miniature, file: Path) -> None:
    sound = content_of(file)

    def swapped(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        return fields, parts[CHUNK_BYTES : 2 * CHUNK_BYTES] + parts[:CHUNK_BYTES] + parts[2 * CHUNK_BYTES :]

    def foreign(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        return fields, parts[: 2 * CHUNK_BYTES] + other

    await frozen(here, "v", text(9))
    other = content_of(files_of(here.settings.home, await hashes_of(here, "v"))[0])
    await forged(there, file, swapped)
    put(file, sound)
    await forged(there, file, foreign)


async def test_chunks_of_another_length_are_refused(there: Miniature, file: Path) -> None:
    def longer(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        key, tokens, (size,) = fields["chunks"][-1]
        return fields | {"chunks": [*fields["chunks"][:-1], [key, tokens, [size + 4096]]]}, parts + bytes(4096)

    await forged(there, file, longer)


async def test_a_sparse_file_of_a_terabyte_costs_nothing(there: Miniature, file: Path) -> None:
    fields, _ = split(content_of(file))
    size = 1 << 38
    chunks = [[key, tokens, [size]] for key, tokens, _ in fields["chunks"]]
    content = joined(fields | {"chunks": chunks}, b"")
    put(file, content[:-TRAILER_BYTES])
    os.truncate(file, len(content) + 3 * size)
    began = time.monotonic()
    await refused(there, Code.CORRUPT, file)
    assert time.monotonic() - began < 5


async def test_what_is_no_regular_file_is_refused_and_never_waited_for(
    there: Miniature, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    for path in (
        tmp_path / "link",
        tmp_path / "loop",
        tmp_path / "fifo",
        tmp_path / "s",
        tmp_path,
        Path("/dev/zero"),
        Path("/dev/tty"),
    ):
        await asyncio.wait_for(refused(there, Code.ARGUMENT, path), 10)
    listener.close()
    await refused(there, Code.READ_FAILED, tmp_path / "nothing")
    for path in (Path("w.cwm"), Path("/"), Path("/a\0b")):
        await refused(there, Code.ARGUMENT, path)


async def test_a_file_that_changes_while_it_is_read_is_refused(there: Miniature, file: Path) -> None:
    sound = content_of(file)

    def change(done: int, total: int, _: str) -> None:
        if done == 1:
            with file.open("r+b") as written:
                written.seek(len(sound) - TRAILER_BYTES - 100)
                written.write(b"changed")

    with pytest.raises(CWMError, match="CWM-4004"):
        await there.call(Op.IMPORT, change, path=str(file))
    put(file, sound)

    def shrink(done: int, total: int, _: str) -> None:
        if done == 1:
            os.truncate(file, PREFIX_BYTES)

    with pytest.raises(CWMError, match="CWM-4004"):
        await there.call(Op.IMPORT, shrink, path=str(file))
    assert await names(there) == [] and chunk_files(there.settings.home) == []


# --- targets ---------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(here: Miniature, file: Path) -> None:
    sound = content_of(file)
    for content in (b"mine", b""):
        put(file, bytes(content))
        with pytest.raises(CWMError, match=r"CWM-1003.*--force"):
            await here.call(Op.EXPORT, window_name="w", path=str(file))
        assert content_of(file) == content and partial_files(file.parent) == []
    await here.call(Op.EXPORT, window_name="w", path=str(file), force=True)
    assert len(content_of(file)) == len(sound)


async def test_what_is_no_file_or_the_store_s_own_is_never_written(here: Miniature, file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "alias").symlink_to(here.settings.home)
    own = (here.settings.catalog_path, here.settings.chunks_path / "x.data", tmp_path / "alias" / "catalog.sqlite")
    for path in (tmp_path, tmp_path / "link", tmp_path / "fifo", *own, Path("relative.cwm")):
        with pytest.raises(CWMError, match="CWM-1003"):
            await here.call(Op.EXPORT, window_name="w", path=str(path), force=True)
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(CWMError, match="CWM-4001"):
        await here.call(Op.EXPORT, window_name="w", path=str(tmp_path / "nowhere" / "w.cwm"))
    long = tmp_path / ("n" * 255)
    await here.call(Op.EXPORT, window_name="w", path=str(long))
    assert long.exists() and partial_files(tmp_path) == []


# --- cancel and kill -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 3])
async def test_a_cancelled_import_leaves_nothing_and_holds_up_nobody(there: Miniature, file: Path, at: int) -> None:
    def cancel(done: int, *_: object) -> None:
        if done == at:
            importing.cancel()

    importing = asyncio.create_task(there.call(Op.IMPORT, cancel, path=str(file)))
    outcome = (await asyncio.gather(importing, return_exceptions=True))[0]
    if isinstance(outcome, dict):  # its commit had begun
        assert at == 3 and await names(there) == ["w"]
    else:
        assert isinstance(outcome, asyncio.CancelledError)
        assert await names(there) == [] and chunk_files(there.settings.home) == []
        assert (await there.call(Op.IMPORT, path=str(file)))["new_bytes"] == 3 * CHUNK_BYTES
    await there.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await there.resume(TEXT, session_id="bob") == RESTORABLE


@pytest.mark.parametrize("at", [0, 1])
async def test_a_cancelled_export_leaves_nothing(here: Miniature, file: Path, at: int) -> None:
    target = file.with_name("cancelled.cwm")

    def cancel(done: int, *_: object) -> None:
        if done == at:
            exporting.cancel()

    exporting = asyncio.create_task(here.call(Op.EXPORT, cancel, window_name="w", path=str(target)))
    with pytest.raises(asyncio.CancelledError):
        await exporting
    assert not target.exists() and partial_files(target.parent) == []


async def test_an_export_cancelled_while_its_file_is_made_leaves_nothing(
    here: Miniature, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, loop, begin = file.with_name("cancelled.cwm"), asyncio.get_running_loop(), archive_files.Target.begin

    def slow(one: archive_files.Target, header: ArchiveHeader) -> None:
        begin(one, header)
        loop.call_soon_threadsafe(exporting.cancel)
        time.sleep(0.2)

    monkeypatch.setattr(archive_files.Target, "begin", slow)
    exporting = asyncio.create_task(here.call(Op.EXPORT, window_name="w", path=str(target)))
    with pytest.raises(asyncio.CancelledError):
        await exporting
    assert not target.exists() and partial_files(target.parent) == []


async def test_a_file_that_does_not_answer_costs_the_import_and_not_the_turn(
    there: Miniature, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "STEP_LIMIT_S", 0.2)
    read, hanging = archive_files.Source.read_into, []

    def hang(source: archive_files.Source, buffer: memoryview) -> None:
        hanging.append(buffer)
        time.sleep(1.5)
        read(source, buffer)

    monkeypatch.setattr(archive_files.Source, "read_into", hang)
    began = time.monotonic()
    problem = await refused(there, Code.READ_FAILED, file)
    assert time.monotonic() - began < 1 and "does not answer" in problem.message and hanging
    await asyncio.wait_for(frozen(there, "meanwhile", text(3)), 10)


async def _die_in(op: Op, home: Path, path: Path, when: str) -> None:
    """An engine that is killed once so many chunks are done, or right after the commit."""
    engine = await Miniature.started(home)

    def progress(done: int, *_: object) -> None:
        if when == str(done):
            os.kill(os.getpid(), signal.SIGKILL)

    async def run(work: Callable[[Any], Any]) -> Any:
        result = await catalog_run(work)
        if when == "committed" and "commit_window" in work.__code__.co_names:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    catalog_run = engine.catalog.run
    engine.catalog.run = run  # type: ignore[method-assign]
    await engine.call(op, progress, path=str(path), **({"window_name": "w"} if op is Op.EXPORT else {}))


def die_in(op: Op, home: Path, path: Path, when: str) -> None:
    asyncio.run(_die_in(op, home, path, when))


def killed(op: Op, home: Path, path: Path, when: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=die_in, args=(op, home, path, when))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("when", ["1", "3", "committed"])
async def test_a_killed_import_left_the_window_whole_or_absent(file: Path, tmp_path: Path, when: str) -> None:
    home = tmp_path / "killed"
    killed(Op.IMPORT, home, file, when)
    assert len(chunk_files(home)) >= int(when if when.isdecimal() else 3)
    later = await Miniature.started(home)
    if when == "committed":
        assert await names(later) == ["w"]
    else:
        assert await names(later) == [] and chunk_files(home) == []
        await later.call(Op.IMPORT, path=str(file))
    await later.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await later.resume(TEXT, session_id="bob") == RESTORABLE
    later.close()


async def test_a_killed_export_leaves_at_most_a_name_that_says_so(tmp_path: Path) -> None:
    await filled(tmp_path / "home")
    target = tmp_path / "out" / "w.cwm"
    target.parent.mkdir()
    killed(Op.EXPORT, tmp_path / "home", target, "2")
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".w.cwm.") and left.name.endswith(archive_files.PARTIAL)


async def test_an_import_waits_for_its_turn(there: Miniature, file: Path) -> None:
    async with there.engine.chunk_lock:
        importing = asyncio.create_task(there.call(Op.IMPORT, path=str(file)))
        await asyncio.sleep(0.3)
        assert not importing.done() and chunk_files(there.settings.home) == []
    assert (await importing)["new_bytes"] == 3 * CHUNK_BYTES


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
