from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cwm_connector.catalog.engines import Engines, engines
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One for all tests of a module. They use namespaces of their own."""
    with redis_server(append_fsync="always") as started:
        yield started


@pytest.fixture
def shared(tmp_path: Path, server: RedisServer) -> Iterator[Engines]:
    with engines(tmp_path, server.url) as made:
        yield made
