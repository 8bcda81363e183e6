"""An engine in miniature with auto-freeze on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.miniature import Miniature


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path, auto_freeze_enabled=True)
    yield one
    one.close()
