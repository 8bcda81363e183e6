"""A real server for the tests of the Redis tier."""

from collections.abc import Iterator

import pytest

from cwm_connector.tiers.redis.tier import RedisTier
from tests.cwm_connector.tiers.redis.tiers import opened
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that keeps nothing over a restart, which is faster."""
    with redis_server() as server:
        yield server


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    """One that keeps its data."""
    with redis_server(append_fsync="always") as server:
        yield server


@pytest.fixture
def tier(server: RedisServer) -> Iterator[RedisTier]:
    with opened(server.url) as tier:
        yield tier
