"""What tests of several folders share: a real Redis, and a folder for sockets."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control import short_folder
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that keeps its data."""
    with redis_server(append_fsync="always") as one:
        yield one


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket in it."""
    with short_folder() as short:
        yield short
