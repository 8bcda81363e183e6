from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def catalog(path: Path) -> Iterator[SqliteCatalog]:
    """Whatever a test did to it, the catalog has to be consistent afterwards."""
    with closing(SqliteCatalog.open(path)) as opened:
        yield opened
        opened.check_integrity()
