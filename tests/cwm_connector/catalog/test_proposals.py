"""The shell's completion reads the same names and tags as a list does."""

import sqlite3
from pathlib import Path

import pytest

from cwm_connector.catalog.base import WindowQuery
from cwm_connector.catalog.proposals import newest_names, tags_of_newest
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from tests.cwm_mcp import homes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    homes.fill(tmp_path)
    return tmp_path / "catalog.sqlite"


def test_names_are_those_of_the_list_newest_first(path: Path) -> None:
    catalog = SqliteCatalog.open_read_only(path)
    try:
        rows = catalog.list_windows(WindowQuery(limit=100)).windows
    finally:
        catalog.close()
    assert newest_names(path, 100) == [row.name for row in rows] and len(rows) > 2
    assert newest_names(path, 2) == [row.name for row in rows][:2]
    assert tags_of_newest(path, 100) == sorted({tag for row in rows for tag in row.tags})


def test_a_missing_catalog_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.Error):
        newest_names(tmp_path / "none.sqlite", 1)
    assert not list(tmp_path.iterdir())
