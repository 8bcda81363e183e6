"""A real Redis for the tests of what lies above the Redis tier."""

from collections.abc import Iterator

import pytest

from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that keeps its data."""
    with redis_server(append_fsync="always") as one:
        yield one
