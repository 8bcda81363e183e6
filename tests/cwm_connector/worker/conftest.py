"""What the tests of the worker side share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cwm_connector.worker.ranks import Rank


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Rank]:
    one = Rank(tmp_path)
    yield one
    one.side.close()
