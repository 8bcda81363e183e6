"""The embedded catalog keeps the contract of `catalog/base.py`: which windows requests without a salt may load."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.catalog.base import OpenWindows, WindowQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.check import definitions
from cwm_connector.catalog.sqlite.rows import seal
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey
from tests.cwm_connector.catalog.samples import at, chain, new_window, token_ids

ALL = OpenWindows()


def beginnings(catalog: SqliteCatalog) -> set[tuple[ChunkKey, int]]:
    found = set()
    catalog.follow_beginnings(lambda key, tokens: found.add((key, tokens)))
    return found


def test_a_private_window_stays_private_and_its_clones_are(catalog: SqliteCatalog) -> None:
    assert catalog.commit_window(new_window("mine", chain("a", 2), private=True)).private
    assert catalog.clone_window("mine", "copy", None, None, at(1)).private
    assert catalog.tag_window("copy", ["t"], [], None, at(2)).private
    assert not catalog.commit_window(new_window("open", chain("b", 2))).private
    assert not catalog.window("open").private


def test_windows_are_found_by_a_chunk_the_newest_first(catalog: SqliteCatalog) -> None:
    chunks = chain("a", 4)
    catalog.commit_window(new_window("old", chunks[:3], created_at=at(1), session_id="alice"))
    catalog.commit_window(new_window("new", chunks, chunks[3:], created_at=at(3), session_id="bob"))
    catalog.commit_window(new_window("second", chunks[:2], [], created_at=at(2), session_id="alice"))
    catalog.commit_window(new_window("mine", chunks, [], created_at=at(4), session_id="alice", private=True))
    first, third, last = chunks[0].key, chunks[2].key, chunks[3].key
    assert catalog.open_windows_with(first, ALL, 9) == ("new", "second", "old")
    assert catalog.open_windows_with(first, ALL, 2) == ("new", "second")
    assert catalog.open_windows_with(third, ALL, 9) == ("new", "old")
    assert catalog.open_windows_with(first, OpenWindows(session_id="alice"), 9) == ("second", "old")
    assert catalog.open_windows_with(first, OpenWindows(max_chunks=3), 9) == ("second", "old")
    assert catalog.open_windows_with(first, OpenWindows(after=at(2)), 9) == ("new",)
    assert catalog.open_windows_with(ChunkKey(b"unknown"), ALL, 9) == ()
    assert catalog.is_open(last, ALL) and not catalog.is_open(last, OpenWindows(session_id="alice"))
    catalog.delete_window("new")
    assert not catalog.is_open(last, ALL)  # only the private window holds it now


def test_first_chunks_are_reported_for_all_windows_and_for_each_new_one(catalog: SqliteCatalog) -> None:
    first, second, third, hidden = (chain(name, 2) for name in "abcd")
    catalog.commit_window(new_window("first", first))
    catalog.commit_window(new_window("hidden", hidden, private=True))
    found = beginnings(catalog)
    assert found == {(first[0].key, 256)}
    followed: list[ChunkKey] = []
    catalog.follow_beginnings(lambda key, tokens: followed.append(key))
    catalog.commit_window(new_window("second", second))
    catalog.commit_window(new_window("third", third, private=True))
    assert followed == [first[0].key, second[0].key]


def test_a_flipped_private_bit_is_damage(catalog: SqliteCatalog, path: Path) -> None:
    catalog.commit_window(new_window("mine", chain("a", 2), private=True))
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE windows SET private = 0")
    with pytest.raises(CWMError) as refused:
        catalog.window("mine")
    assert refused.value.code is Code.CORRUPT
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE windows SET private = 1")


@pytest.mark.parametrize("damaged", [False, True])
def test_windows_of_the_second_schema_are_not_private_and_a_damaged_one_stays_damaged(
    path: Path, damaged: bool
) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("old", chain("a", 2), tags=["t", "u"]))
        window = catalog.window("old")
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DROP TABLE chunk_tokens")
        raw.execute("UPDATE snapshot_tokens SET token_ids = ?", (token_ids("old", chain("a", 2)),))
        raw.execute("DROP TABLE proofs")
        raw.execute("DROP TABLE trash")
        raw.execute("DROP TABLE window_texts")
        raw.execute("CREATE VIRTUAL TABLE window_words USING fts5 (name, description, tags)")
        raw.execute("ALTER TABLE windows DROP COLUMN private")
        (fields,) = raw.execute("SELECT * FROM windows").fetchall()
        raw.execute("UPDATE windows SET digest = ?", (seal("window", *fields[:-1], "t", "u"),))
        raw.execute("ALTER TABLE snapshots DROP COLUMN origin")
        (fields,) = raw.execute("SELECT * FROM snapshots").fetchall()
        raw.execute("UPDATE snapshots SET digest = ?", (seal("snapshot", *fields[:-1]),))
        raw.execute("UPDATE about SET definitions = ?", (definitions(raw),))
        raw.execute("PRAGMA user_version = 2")
        if damaged:
            raw.execute("UPDATE windows SET token_count = token_count + 1")
    with closing(SqliteCatalog.open(path)) as catalog:
        if damaged:
            with pytest.raises(CWMError) as refused:
                catalog.window("old")
            assert refused.value.code is Code.CORRUPT
        else:
            assert catalog.window("old") == replace(window, private=False)
            assert catalog.list_windows(WindowQuery(search="old")).total == 1
            catalog.check_integrity()


def test_a_chunk_that_many_windows_hold_leads_to_the_newest_ones(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_connector.catalog.sqlite.chunks._HELD_BY_MANY", 3)
    first, *_ = long = chain("a", 6)
    for n in range(6):
        catalog.commit_window(new_window(f"w{n}", long[: n + 1], session_id=f"s{n % 2}", created_at=at(n)))
    catalog.commit_window(new_window("other", chain("b", 1), created_at=at(9)))
    assert catalog.open_windows_with(first.key, OpenWindows(), 3) == ("w5", "w4", "w3")
    assert catalog.open_windows_with(first.key, OpenWindows(max_chunks=2), 3) == ("w1", "w0")
    assert catalog.open_windows_with(first.key, OpenWindows(session_id="s0"), 9) == ("w4", "w2", "w0")
    assert catalog.is_open(first.key, OpenWindows(after=at(4)))
    assert not catalog.is_open(first.key, OpenWindows(after=at(5)))
