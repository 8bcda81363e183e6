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
    store_id = open_home(home, chunks)
    assert {(folder / "store.id").read_text() for folder in (home, chunks)} == {store_id}
    assert open_home(home, chunks) == store_id
