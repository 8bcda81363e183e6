"""What is said without an engine is what the catalog's rows say, and a damaged window keeps no other from the list."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.protocol.calls import ListArgs, StatusArgs
from cwm_connector.settings import Settings
from cwm_mcp.api.offline import OfflineCatalog
from tests.cwm_mcp.homes import CHUNK_BYTES, fill

BY_NAME = ListArgs(sort_by="name", sort_order="asc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path)
    return Settings(home=tmp_path).catalog_path


@contextmanager
def engine(path: Path) -> Iterator[SqliteCatalog]:
    with closing(SqliteCatalog.open(path)) as catalog:
        yield catalog


def keys(*numbers: int) -> list[ChunkKey]:
    return [ChunkKey(bytes([number]) * 32) for number in numbers]


def test_a_windows_tier_is_the_one_that_its_rows_name(path: Path) -> None:
    with engine(path) as catalog:
        catalog.place(TierName.REDIS, keys(0, 1, 2, 3), [])
        catalog.place(TierName.DISK, [], keys(0, 1))
    offline = OfflineCatalog(path)
    listed = {item.name: item.storage_tier for item in offline.windows(ListArgs()).windows}
    # The fifth chunk of `branch` is on disk alone and two are in Redis alone; Redis has the three of `stem`.
    assert listed == {"stem": "redis", "stem-for-alice": "redis", "branch": "redis"}
    status = offline.status(StatusArgs(window_name="branch", include_blocks=True))
    assert status.kv_cache.tiers == {"disk": 3, "redis": 4}
    assert [block.storage_tier for block in status.blocks or ()] == ["redis", "redis", "disk", "disk", "disk"]
    assert msgspec.to_builtins(offline.stats().kv_store.tiers) == {
        "cpu": None,
        "disk": {"blocks": 3, "bytes": 3 * CHUNK_BYTES, "limit_bytes": None},
        "redis": {"blocks": 4, "bytes": 4 * CHUNK_BYTES, "limit_bytes": None},
    }


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE windows SET description = 'another' WHERE name = 'stem'",
        "UPDATE snapshots SET passport = '{}' WHERE id = 1",
    ],
)
def test_a_damaged_window_is_listed_by_its_name_and_the_others_are_whole(path: Path, tampering: str) -> None:
    before = OfflineCatalog(path).windows(BY_NAME).windows
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(tampering)
    offline = OfflineCatalog(path)
    after = offline.windows(BY_NAME).windows
    assert [each.name for each in after] == ["branch", "stem", "stem-for-alice"]
    damaged = {each.name for each in after if each.state == "damaged"}
    assert "stem" in damaged
    assert "branch" not in damaged
    assert [each for each in after if each.state != "damaged"] == [each for each in before if each.name not in damaged]
    assert {each.token_count for each in after if each.state == "damaged"} == {None}
    with pytest.raises(CWMError, match="'stem' is damaged") as refused:
        offline.status(StatusArgs(window_name="stem"))
    assert (refused.value.code, refused.value.context) == (Code.CORRUPT, {"window": "stem"})


def test_a_window_whose_chunks_are_damaged_is_listed_without_its_tier(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE chunks SET size_bytes = 1 WHERE key = ?", keys(4))
    listed = {item.name: item.storage_tier for item in OfflineCatalog(path).windows(ListArgs()).windows}
    assert listed == {"stem": "disk", "stem-for-alice": "disk", "branch": None}
