"""The integrity check finds everything that is counted or kept twice, once it no longer agrees."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from tests.cwm_connector.catalog.samples import at, chain, new_window


@pytest.fixture
def filled(path: Path) -> Iterator[Path]:
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("first", chain("a", 3), tags=["debug"]))
        catalog.commit_window(new_window("second", chain("a", 5), stored=chain("a", 5)[3:]))
        catalog.clone_window("first", "third", None, None, at(1))
        catalog.check_integrity()
    yield path


@pytest.mark.parametrize(
    ("tampering", "finding"),
    [
        ("UPDATE chunks SET refs = refs + 1 WHERE id = 1", "references are miscounted"),
        ("UPDATE chunks SET owners = owners + 1 WHERE id = 1", "references are miscounted"),
        ("DELETE FROM chunks WHERE id = 5", "refers to a missing row of chunks"),
        ("DELETE FROM chunks WHERE id = 5; DELETE FROM chunk_tokens WHERE chunk_id = 5", "a chunk that is not stored"),
        ("DELETE FROM chunk_tokens WHERE chunk_id = 5", "a chunk's token ids are missing"),
        ("DELETE FROM snapshot_chunks WHERE position = 1", "references are miscounted"),
        ("UPDATE chunks SET size_bytes = size_bytes + 1 WHERE id = 4", "totals are miscounted"),
        ("UPDATE totals SET chunks = 4", "totals are miscounted"),
        ("UPDATE snapshots SET windows = 1", "windows are miscounted"),
        ("UPDATE snapshots SET own_bytes = 7", "sizes are miscounted"),
        ("UPDATE snapshots SET block_count = block_count + 1", "sizes are miscounted"),
        ("UPDATE snapshot_chunks SET position = 9 WHERE position = 2", "sizes are miscounted"),
        ("UPDATE windows SET size_bytes = 1 WHERE id = 1", "sizes are miscounted"),
        ("UPDATE windows SET token_count = token_count + 1 WHERE id = 2", "missing or cut short"),
        ("UPDATE snapshot_tokens SET token_ids = substr(token_ids, 2)", "missing or cut short"),
        ("DELETE FROM snapshot_tokens WHERE snapshot_id = 2", "missing or cut short"),
        (
            "DELETE FROM window_texts WHERE window_id = 2; DELETE FROM windows WHERE id = 2",
            "windows are miscounted, or it has none",
        ),
        ("DELETE FROM snapshots WHERE id = 2", "refers to a missing row"),
        ("DELETE FROM window_texts WHERE window_id = 3", "window 'third' is damaged"),
        ("UPDATE window_texts SET text = 'new' WHERE window_id = 2", "window 'second' is damaged"),
        ("INSERT INTO window_texts VALUES (99, 'gone')", "refers to a missing row of windows"),
        ("UPDATE windows SET description = 'new'", "window 'first' is damaged"),
        ("DELETE FROM window_tags", "window 'first' is damaged"),
        ("INSERT INTO window_tags VALUES (99, 0, 'lost')", "refers to a missing row of windows"),
    ],
)
def test_what_does_not_agree_is_found(filled: Path, tampering: str, finding: str) -> None:
    with closing(sqlite3.connect(filled)) as raw, raw:
        raw.executescript(tampering)
    with closing(SqliteCatalog.open_read_only(filled)) as catalog:
        with pytest.raises(CWMError, match=finding) as refused:
            catalog.check_integrity()
        assert refused.value.code is Code.CORRUPT
