"""pairing.py: another home's chunks and chunks without a catalog are never taken for orphans."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.store.pairing import open_home, pair_store, require_catalog
from cwm_connector.tiers.disk.tier import DiskTier
from tests.cwm_connector.tiers.chunks import sealed_chunk


def test_processes_that_pair_a_home_at_once_agree_on_its_id(tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda _: pair_store(tmp_path, tmp_path / "chunks"), range(64)))
    assert set(ids) == {(tmp_path / "store.id").read_text()}


def test_a_folder_with_another_home_s_chunks_is_refused(tmp_path: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    shared = tmp_path / "chunks"
    for folder in (*homes, shared):
        folder.mkdir()
    pair_store(homes[0], shared)
    pair_store(homes[0], shared)
    with pytest.raises(CWMError, match=r"CWM-1003.*another CWM_HOME"):
        pair_store(homes[1], shared)


def test_chunks_whose_catalog_is_missing_are_kept_and_the_start_is_refused(tmp_path: Path) -> None:
    folder, chunk = tmp_path / "chunks", sealed_chunk(1, 8192)
    folder.mkdir()
    require_catalog(tmp_path / "none.sqlite", folder)  # an empty folder: a new home
    with closing(DiskTier(folder)) as disk:
        disk.write(chunk.id, chunk.buffer).result()
        (tmp_path / "empty.sqlite").touch()
        for name in ("none.sqlite", "empty.sqlite"):
            with pytest.raises(CWMError, match=r"CWM-4004.*restore it"):
                require_catalog(tmp_path / name, folder)
        (tmp_path / "catalog.sqlite").write_bytes(b"not empty")
        require_catalog(tmp_path / "catalog.sqlite", folder)
        assert disk.size_of(chunk.id) == chunk.buffer.nbytes


def test_a_home_is_made_with_its_chunk_folder_and_paired(tmp_path: Path) -> None:
    home, chunks = tmp_path / "home", tmp_path / "elsewhere" / "chunks"
    store_id = open_home(home, chunks, home / "catalog.sqlite")
    assert {(folder / "store.id").read_text() for folder in (home, chunks)} == {store_id}
    assert open_home(home, chunks, home / "catalog.sqlite") == store_id


def test_a_chunk_folder_whose_disk_is_not_mounted_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    home, chunks = tmp_path / "home", tmp_path / "disk" / "chunks"
    catalog = home / "catalog.sqlite"
    store_id = open_home(home, chunks, catalog)
    catalog.write_text("rows")
    chunks.rename(tmp_path / "unmounted")
    for _ in ("missing", "empty"):
        with pytest.raises(CWMError, match=r"CWM-1003.*mount its disk"):
            open_home(home, chunks, catalog)
        assert not chunks.exists() or not list(chunks.iterdir())
        chunks.mkdir(exist_ok=True)
    chunks.rmdir()
    (tmp_path / "unmounted").rename(chunks)
    assert open_home(home, chunks, catalog) == store_id


def test_a_new_chunk_folder_is_taken_once_it_has_the_home_s_mark(tmp_path: Path) -> None:
    home, chunks = tmp_path / "home", tmp_path / "new"
    store_id = open_home(home, home / "chunks", home / "catalog.sqlite")
    (home / "catalog.sqlite").write_text("rows")
    chunks.mkdir()
    (chunks / "store.id").write_text((home / "store.id").read_text())
    assert open_home(home, chunks, home / "catalog.sqlite") == store_id


def test_a_start_that_was_killed_between_the_two_marks_is_carried_on(tmp_path: Path) -> None:
    home, chunks, catalog = tmp_path / "home", tmp_path / "chunks", tmp_path / "home" / "catalog.sqlite"
    store_id = open_home(home, chunks, catalog)
    (chunks / "store.id").unlink()
    catalog.write_text("")
    assert open_home(home, chunks, catalog) == store_id
