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
    """A new catalog, which has to be consistent after the test as well."""
    with closing(SqliteCatalog.open(path)) as opened:
        yield opened
        opened.check_integrity()
