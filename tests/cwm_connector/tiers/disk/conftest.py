"""A disk tier in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cwm_connector.tiers.disk.tier import DiskTier
from tests.cwm_connector.tiers.disk.tiers import opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "chunks"
    folder.mkdir()
    return folder


@pytest.fixture
def tier(folder: Path) -> Iterator[DiskTier]:
    with opened(folder) as tier:
        yield tier
