"""Two engines, and a file that the first has exported."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.transfers import TEXT


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path / "here")
    yield one
    one.close()


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Miniature]:
    one = await Miniature.started(tmp_path / "there")
    yield one
    one.close()


@pytest.fixture
async def file(here: Miniature, tmp_path: Path) -> Path:
    """Window `w` of `here`, exported."""
    await here.serve(TEXT, "alice")
    tags = ["planning"]
    await here.call(Op.FREEZE, session_id="alice", window_name="w", description="Anna's plan", tags=tags)
    path = tmp_path / "w.cwm"
    await here.call(Op.EXPORT, window_name="w", path=str(path))
    return path
