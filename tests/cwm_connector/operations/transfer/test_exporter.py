"""exporter.py: a window is exported whole and verified, or no file is left."""

import asyncio
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import Passport
from cwm_connector.operations.transfer import archive_files
from cwm_connector.operations.transfer.archive import ArchiveHeader
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import RedisServer
from tests.support.stores import (
    demote,
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
    filled,
    killed,
    partial_files,
    put,
    refused,
)


async def test_an_exported_file_is_private_and_its_length_is_returned(
    here: Miniature, file: Path, tmp_path: Path
) -> None:
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


async def test_a_window_with_chunks_of_another_size_is_exported_and_only_fits_its_own_setting(
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


async def test_a_bad_copy_is_replaced_from_memory_before_it_is_exported(here: Miniature, file: Path) -> None:
    (path,) = files_of(here.settings.home, (await hashes_of(here, "w"))[1:2])
    sound = path.read_bytes()
    flip(path)
    await here.call(Op.EXPORT, window_name="w", path=str(file), force=True)
    assert path.read_bytes() == sound and sound in content_of(file)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
async def test_a_chunk_that_can_t_be_verified_is_not_exported(here: Miniature, file: Path, damage: str) -> None:
    (path,) = files_of(here.settings.home, (await hashes_of(here, "w"))[2:3])
    {"flip": flip, "cut": lambda path: os.truncate(path, 4096), "gone": Path.unlink}[damage](path)
    forget_memory(here)
    target = file.with_name("damaged.cwm")
    with pytest.raises(CWMError) as problem:
        await here.call(Op.EXPORT, window_name="w", path=str(target))
    assert problem.value.code in (Code.CORRUPT, Code.CHUNK_MISSING)
    assert not target.exists() and partial_files(target.parent) == []


async def test_an_export_ends_when_its_window_is_deleted(here: Miniature, file: Path) -> None:
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


async def test_a_window_of_another_passport_is_not_exported(tmp_path: Path) -> None:
    await filled(tmp_path / "home")
    other = await Miniature.started(tmp_path / "home", passport=Passport({"weights": "large", "format": "1"}))
    with pytest.raises(CWMError, match=r"CWM-5003.*weights"):
        await other.call(Op.EXPORT, window_name="w", path=str(tmp_path / "x.cwm"))
    other.close()


async def test_an_existing_file_is_replaced_only_with_force(here: Miniature, file: Path) -> None:
    sound = content_of(file)
    for content in (b"mine", b""):
        put(file, bytes(content))
        with pytest.raises(CWMError, match=r"CWM-1003.*--force"):
            await here.call(Op.EXPORT, window_name="w", path=str(file))
        assert content_of(file) == content and partial_files(file.parent) == []
    await here.call(Op.EXPORT, window_name="w", path=str(file), force=True)
    assert len(content_of(file)) == len(sound)


async def test_folders_devices_and_the_engine_s_own_files_are_never_written(
    here: Miniature, file: Path, tmp_path: Path
) -> None:
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


async def test_a_killed_export_leaves_at_most_a_partial_file(tmp_path: Path) -> None:
    await filled(tmp_path / "home")
    target = tmp_path / "out" / "w.cwm"
    target.parent.mkdir()
    killed(Op.EXPORT, tmp_path / "home", target, "2")
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".w.cwm.") and left.name.endswith(archive_files.PARTIAL)
