"""An engine in miniature, over a store of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.miniature import Miniature


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path)
    yield one
    one.close()


@pytest.fixture
async def thaw_only(tmp_path: Path) -> AsyncIterator[Miniature]:
    """An engine that loads nothing without a thaw."""
    one = await Miniature.started(tmp_path, auto_thaw="off")
    yield one
    one.close()
