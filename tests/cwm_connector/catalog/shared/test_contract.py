"""The shared catalog keeps the contract of `catalog/base.py`: the embedded catalog's own tests, over a real Redis."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings

from cwm_connector.catalog.base import Catalog
from cwm_connector.catalog.shared.catalog import RedisCatalog
from tests.cwm_connector.catalog.engines import namespace
from tests.cwm_connector.catalog.sqlite import (
    test_catalog,
    test_chunks,
    test_open_windows,
    test_states,
    test_thaws,
    test_windows,
)
from tests.cwm_connector.catalog.trash import test_sqlite
from tests.support.redis_server import RedisServer, redis_server

_URL: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[RedisServer]:
    with redis_server(append_fsync="always") as started:
        _URL.append(started.url)
        yield started
        _URL.clear()


@pytest.fixture
def catalog(path: Path, server: RedisServer) -> Iterator[RedisCatalog]:
    with closing(RedisCatalog.open(server.url, namespace(), path)) as opened:
        yield opened
        opened.check_integrity()


def test_it_is_a_catalog(catalog: RedisCatalog) -> None:
    promised: Catalog = catalog  # mypy's part of the test
    assert promised.state() is None


for _module in (test_catalog, test_chunks, test_open_windows, test_thaws, test_sqlite, test_windows):
    globals().update(
        {name: test for name, test in vars(_module).items() if name.startswith("test_") and name not in globals()}
    )


class SharedChanges(test_states.Changes):
    def __init__(self) -> None:
        super().__init__()
        self.catalog.close()
        self.catalog = RedisCatalog.open(_URL[0], namespace(), Path(self.folder.name) / "replica.sqlite")


TestChanges = SharedChanges.TestCase
TestChanges.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
