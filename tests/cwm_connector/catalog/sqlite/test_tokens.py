"""Token ids are stored once for each chunk, in as few bytes as they need, and come back exactly."""

import random
import sqlite3
from array import array
from contextlib import closing
from pathlib import Path

import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.tokens import cut, pack, unpack
from tests.cwm_connector.catalog.samples import chain, ids_of, new_window, token_ids


def stored(path: Path) -> dict[int, int]:
    """Return the length of each chunk's ids, by the id of its row."""
    with closing(sqlite3.connect(path)) as raw:
        return dict(raw.execute("SELECT chunk_id, length(token_ids) FROM chunk_tokens"))


def damage(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(statement)


@pytest.mark.parametrize(("largest", "width"), [(255, 1), (65_535, 2), (128_255, 3), (2**31 - 1, 4)])
def test_an_id_takes_as_many_bytes_as_the_largest_one_of_its_chunk(largest: int, width: int) -> None:
    ids = array("i", [0, 1, largest, *(random.randrange(largest) for _ in range(253))]).tobytes()
    assert len(pack(ids)) == 1 + 256 * width
    assert unpack([pack(ids)]) == ids


def test_chunks_of_different_widths_come_back_in_their_order() -> None:
    parts = [array("i", range(at, at + 3)).tobytes() for at in (0, 70_000, 7, -5, 300)]
    assert unpack(map(pack, parts)) == b"".join(parts)
    assert unpack([pack(b"")]) == unpack([]) == b""


def test_ids_are_cut_at_the_ends_of_chunks() -> None:
    assert cut(bytes(range(20)), [2, 1]) == ([bytes(range(8)), bytes(range(8, 12))], bytes(range(12, 20)))


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x05abcde", b"\x02abc"])
def test_what_was_not_packed_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="wrong length"):
        unpack([value])


def test_windows_that_continue_each_other_store_only_new_ids(catalog: SqliteCatalog, path: Path) -> None:
    long = chain("a", 40)
    catalog.commit_window(new_window("first", long[:30]))
    catalog.commit_window(new_window("second", long, long[30:]))
    assert len(stored(path)) == 40
    assert catalog.token_ids_of("first") == token_ids("first", long[:30])
    assert catalog.token_ids_of("second") == token_ids("second", long)


def test_ids_go_with_the_last_window_that_holds_their_chunk(catalog: SqliteCatalog, path: Path) -> None:
    long = chain("a", 4)
    catalog.commit_window(new_window("first", long[:2]))
    catalog.commit_window(new_window("second", long, long[2:]))
    catalog.delete_window("first")
    assert len(stored(path)) == 4
    catalog.delete_window("second", keep=[long[0].key])
    assert len(stored(path)) == 1
    catalog.sweep_unreferenced()
    assert stored(path) == {}


def test_what_was_deleted_cannot_be_read_from_the_file(path: Path) -> None:
    long = chain("secret", 3)
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("first", long))
        catalog.delete_window("first")
    assert not any(pack(ids_of(row))[1:65] in path.read_bytes() for row in long)


@pytest.mark.parametrize("damaged", ["DELETE FROM chunk_tokens", "UPDATE chunk_tokens SET token_ids = x'0101'"])
def test_a_freeze_of_the_same_tokens_repairs_damaged_ids(catalog: SqliteCatalog, path: Path, damaged: str) -> None:
    long = chain("a", 3)
    catalog.commit_window(new_window("first", long))
    damage(path, f"{damaged} WHERE chunk_id = 2")
    catalog.commit_window(new_window("second", long, stored=[]))
    assert catalog.token_ids_of("second") == token_ids("second", long)
    assert catalog.token_ids_of("first") == token_ids("first", long)
