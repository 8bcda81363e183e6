"""The embedded catalog keeps the contract of `catalog/base.py`: it knows which tiers and windows hold a chunk."""

from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.catalog.base import Binding, ChunkRow, TierTotals
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Claim, Micros, TierName
from tests.cwm_connector.catalog.samples import at, chain, content, new_window, sizes

DISK, REDIS = TierName.DISK, TierName.REDIS


def placed(catalog: SqliteCatalog, rows: list[ChunkRow]) -> list[frozenset[TierName]]:
    stored = catalog.stored([row.key for row in rows])
    return [stored[row.key].tiers for row in rows]


def test_a_chunks_tiers_are_those_that_were_told(catalog: SqliteCatalog) -> None:
    chunks = chain("a", 4)
    catalog.commit_window(new_window("first", chunks))
    keys = [row.key for row in chunks]
    catalog.place(TierName.REDIS, keys[:3], [])
    catalog.place(TierName.DISK, [], keys[1:])
    catalog.place(TierName.REDIS, [keys[3], ChunkKey(b"unknown")], [keys[2]])
    assert placed(catalog, chunks) == [{DISK, REDIS}, {REDIS}, frozenset(), {REDIS}]
    assert catalog.chunks_of("first") == tuple(catalog.stored(keys).values()) == catalog.all_chunks()
    totals = catalog.totals()
    assert (totals.chunks, totals.stored_bytes) == (4, sizes(chunks))
    assert totals.tiers == {
        DISK: TierTotals(1, chunks[0].size_bytes),
        REDIS: TierTotals(3, sizes([chunks[0], chunks[1], chunks[3]])),
    }


def test_a_chunk_that_came_and_went_is_gone(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1)))
    catalog.place(TierName.DISK, [chain("a", 1)[0].key], [chain("a", 1)[0].key])
    assert placed(catalog, chain("a", 1)) == [frozenset()]


def test_memory_is_no_place_that_a_row_can_promise(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1)))
    with pytest.raises(CWMError) as refused:
        catalog.place(TierName.CPU, [chain("a", 1)[0].key], [])
    assert refused.value.code is Code.INTERNAL


def test_a_chunk_stored_again_keeps_its_claim_and_gains_the_tiers(catalog: SqliteCatalog) -> None:
    (mine,) = chain("a", 1)
    mine = replace(mine, claim=Claim("mine"))
    catalog.commit_window(new_window("first", [mine]))
    theirs = replace(mine, claim=Claim("theirs"), tiers=frozenset({REDIS}), size_bytes=7)
    catalog.commit_window(new_window("second", [theirs]))
    assert catalog.all_chunks() == (replace(mine, tiers=frozenset({DISK, REDIS})),)
    assert catalog.totals().tiers[REDIS] == TierTotals(1, mine.size_bytes)
    assert catalog.window("second").size_bytes == mine.size_bytes


def test_a_chunk_that_no_tier_holds_is_missing_until_it_is_stored_again(catalog: SqliteCatalog, path: Path) -> None:
    chunks = chain("a", 3)
    catalog.commit_window(new_window("first", chunks))
    catalog.place(TierName.DISK, [], [chunks[1].key])
    before = content(path)
    with pytest.raises(CWMError, match="1 of 3 chunks are not stored") as refused:
        catalog.commit_window(new_window("second", chunks, stored=[]))
    assert refused.value.code is Code.CHUNK_MISSING
    assert content(path) == before
    catalog.commit_window(new_window("second", chunks, stored=chunks[1:2]))
    assert placed(catalog, chunks) == [{DISK}] * 3


def test_a_walk_over_the_chunks_goes_on_where_it_stopped(catalog: SqliteCatalog) -> None:
    chunks = [row for name in "abc" for row in chain(name, 5)]
    catalog.commit_window(new_window("first", chunks))
    walked: list[ChunkRow] = []
    while rows := catalog.chunks_after(walked[-1].key if walked else None, 4):
        assert len(rows) == min(4, len(chunks) - len(walked))
        walked += rows
    assert walked == sorted(chunks, key=lambda row: row.key)


def uses(catalog: SqliteCatalog) -> dict[ChunkKey, Micros]:
    """Return the uses, read two at a time."""
    found: list[tuple[ChunkRow, Micros]] = []
    while page := catalog.uses_after(found[-1][0].key if found else None, 2):
        found += page
    assert [row for row, _ in found] == sorted(catalog.all_chunks(), key=lambda row: row.key)
    return {row.key: at for row, at in found}


def test_a_chunk_s_use_is_the_last_freeze_or_thaw_of_its_windows(catalog: SqliteCatalog) -> None:
    old, shared, new, loose = chain("a", 4)
    catalog.commit_window(new_window("old", [old, shared], stored=[old, shared, loose], created_at=at(1)))
    catalog.commit_window(new_window("new", [shared, new], created_at=at(5)))
    assert uses(catalog) == {loose.key: 0, old.key: at(1), shared.key: at(5), new.key: at(5)}
    catalog.clone_window("old", "copy", None, None, at(7))
    catalog.bind(Binding("copy", "bob", b"1" * 32, at(9)))
    catalog.tag_window("new", ["a"], [], None, at(20))
    assert uses(catalog) == {loose.key: 0, new.key: at(5), old.key: at(9), shared.key: at(9)}
    catalog.delete_window("copy")
    assert uses(catalog) == {loose.key: 0, old.key: at(1), shared.key: at(5), new.key: at(5)}


def test_the_windows_that_hold_a_chunk_are_named(catalog: SqliteCatalog) -> None:
    mine, shared, loose, unknown = chain("a", 4)
    catalog.commit_window(new_window("one", [mine, shared], stored=[mine, shared, loose]))
    catalog.commit_window(new_window("two", [shared], stored=[]))
    catalog.clone_window("one", "copy", None, None, at(1))
    assert catalog.windows_with([row.key for row in (mine, shared, loose, unknown)]) == {
        mine.key: ("one", "copy"),
        shared.key: ("one", "two", "copy"),
        loose.key: (),
        unknown.key: (),
    }


def test_only_stored_chunks_are_reported_as_stored(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 2)))
    assert catalog.stored([row.key for row in chain("a", 4)]) == {row.key: row for row in chain("a", 2)}
    assert catalog.stored([]) == {}
