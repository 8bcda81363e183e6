"""Control servers for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.control import Served, served


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """One server for the tests that leave it as it was; that it lives on is part of what they show."""
    with served() as server:
        yield server


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as server:
        yield server
