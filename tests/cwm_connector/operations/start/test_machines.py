"""An engine on machines as they are: it starts and keeps its windows, or refuses in one line and touches nothing."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.clock import CLOCK
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Op
from cwm_connector.store.pairing import pair_store
from tests.cwm_connector.tiers.mounts import mounted, read_only
from tests.support.miniature import Miniature
from tests.support.stores import frozen, text


def failing(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


async def comes_back(home: Path, **settings: Any) -> bool:
    """Return whether a new engine over the home loads the whole window `w`."""
    engine = await Miniature.started(home, **settings)
    await engine.call(Op.THAW, window_name="w", new_session_id="reader")
    loaded = await engine.resume(text(1), session_id="reader")
    engine.close()
    return loaded == len(text(1))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
async def test_a_file_system_without_hard_links_keeps_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", failing(number))
    engine = await Miniature.started(tmp_path)
    await frozen(engine, "w", text(1))
    engine.close()
    assert await comes_back(tmp_path)


def test_without_hard_links_processes_that_start_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    (tmp_path / "chunks").mkdir()
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda _: pair_store(tmp_path, tmp_path / "chunks"), range(64)))
    assert set(ids) == {(tmp_path / "store.id").read_text()}
    assert not list(tmp_path.glob(".store.id.*[!k]"))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
async def test_a_file_system_without_fsync_is_refused_before_anything_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(CWMError, match="choose another folder") as refused:
        await Miniature.started(tmp_path / "home")
    assert refused.value.code is Code.ARGUMENT


async def test_a_disk_that_loses_fsync_acknowledges_nothing_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await Miniature.started(tmp_path)
    await frozen(engine, "w", text(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(CWMError) as refused:
            await frozen(engine, "lost", text(2))
    assert refused.value.code is Code.WRITE_FAILED
    engine.close()
    assert await comes_back(tmp_path)


async def test_a_file_system_without_direct_io_keeps_windows(tmp_path: Path) -> None:
    with mounted("ramfs", tmp_path / "memory") as folder:
        engine = await Miniature.started(tmp_path / "home", disk_path=str(folder))
        await frozen(engine, "w", text(1))
        engine.close()
        assert await comes_back(tmp_path / "home", disk_path=str(folder))


async def test_a_start_on_a_full_or_read_only_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "disk", size_mib=16) as folder:
        home = folder / "home"
        engine = await Miniature.started(home)
        await frozen(engine, "w", text(1))
        engine.close()
        before = contents(home)
        with read_only(tmp_path / "disk"), pytest.raises(CWMError, match="Read-only file system"):
            await Miniature.started(home)
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        with pytest.raises(CWMError) as refused:
            await Miniature.started(home)
        assert refused.value.code in (Code.ARGUMENT, Code.QUOTA, Code.WRITE_FAILED)
        assert {name: size for name, size in contents(home).items() if name.endswith(".data")} == {
            name: size for name, size in before.items() if name.endswith(".data")
        }
        filler.unlink()
        assert await comes_back(home)


async def test_a_start_over_an_empty_mount_point_is_refused_and_the_windows_are_back_with_the_disk(
    tmp_path: Path,
) -> None:
    home, chunks = tmp_path / "home", tmp_path / "disk" / "chunks"
    engine = await Miniature.started(home, disk_path=str(chunks))
    await frozen(engine, "w", text(1))
    engine.close()
    chunks.parent.rename(tmp_path / "unmounted")
    chunks.parent.mkdir()
    with pytest.raises(CWMError, match="mount its disk"):
        await Miniature.started(home, disk_path=str(chunks))
    chunks.parent.rmdir()
    (tmp_path / "unmounted").rename(chunks.parent)
    assert await comes_back(home, disk_path=str(chunks))


@pytest.mark.parametrize("days", [40, -40])
async def test_a_clock_that_jumps_loses_no_session_and_no_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    engine = await Miniature.started(tmp_path)
    await frozen(engine, "w", text(1))
    wall = CLOCK._wall_ns
    monkeypatch.setattr(CLOCK, "_wall_ns", lambda: wall() + days * 24 * 3600 * 10**9)
    monkeypatch.setattr("time.time_ns", CLOCK._wall_ns)
    monkeypatch.setattr("time.time", lambda: CLOCK._wall_ns() / 1e9)
    await frozen(engine, "later", text(2))
    listed = await engine.call(Op.LIST, sort_by="created_at", sort_order="asc")
    assert [window["name"] for window in listed["windows"]] == ["w", "later"]
    sessions = await engine.call(Op.SESSIONS)
    assert {each["state"] for each in sessions["sessions"]} == {"frozen"}
    engine.close()
    assert await comes_back(tmp_path)
