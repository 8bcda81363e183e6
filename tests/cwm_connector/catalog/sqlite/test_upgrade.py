"""A file of the first schema, written as the code of that time wrote it, is brought up to date with all it holds."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cwm_connector.catalog.base import Binding, ChunkRow, NewWindow, WindowQuery
from cwm_connector.catalog.session_pages import SessionEvent, SessionQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.schema import MIGRATIONS, SCHEMA_VERSION
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros, TierName
from tests.cwm_connector.catalog.samples import at, chain, content, new_window, token_ids, totals

ROOT = Path(__file__).parents[4]

# --- the statements of the first schema's code, as they were ---

_HELD = "SELECT chunk_id FROM snapshot_chunks WHERE snapshot_id = :snapshot"
_LOSSES = f"SELECT owners, sum(size_bytes) FROM chunks WHERE id IN ({_HELD}) AND refs = 1 GROUP BY owners"
_SIZES = f"""
    SELECT ifnull(sum(size_bytes), 0), ifnull(sum(iif(refs = 1, size_bytes, 0)), 0) FROM chunks WHERE id IN ({_HELD})
"""
_FREEZE = """
    INSERT INTO windows (
        name, snapshot_id, description, session_id, head, parent, cloned, model, token_count, size_bytes,
        created_at, updated_at
    )
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?10)
"""
_CLONE = """
    INSERT INTO windows (
        name, snapshot_id, description, session_id, head, parent, cloned, model, token_count, size_bytes,
        created_at, updated_at
    )
    SELECT ?2, snapshot_id, ifnull(?3, description), session_id, head, name, 1, model, token_count, size_bytes, ?4, ?4
    FROM windows WHERE id = ?1
"""
_REMEMBER_SESSION = """
    INSERT INTO sessions (session_id, model, token_count, event, created_at, updated_at)
    SELECT ?1, model, token_count, ?2, ?3, ?3 FROM windows WHERE id = ?4
    ON CONFLICT (session_id) DO UPDATE SET
        model = excluded.model, token_count = excluded.token_count, event = excluded.event,
        updated_at = excluded.updated_at
"""
_WORDS = """
    INSERT INTO window_words (rowid, name, description, tags) SELECT id, name, description, ? FROM windows WHERE id = ?
"""


class FirstSchema:
    """What the first schema's catalog did, statement by statement."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA foreign_keys = ON")
        with self.db:
            MIGRATIONS[0](self.db)
            self.db.execute("PRAGMA user_version = 1")

    def commit(self, new: NewWindow) -> None:
        with self.db as db:
            db.executemany(
                "INSERT INTO chunks (key, tokens, size_bytes) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
                ((row.key, row.tokens, row.size_bytes) for row in new.stored),
            )
            snapshot = db.execute(
                "INSERT INTO snapshots (restorable_tokens, block_count, passport) VALUES (?, ?, ?)",
                (new.restorable_tokens, len(new.chunks), json.dumps(dict(new.passport), sort_keys=True)),
            ).lastrowid
            db.execute("INSERT INTO snapshot_tokens (snapshot_id, token_ids) VALUES (?, ?)", (snapshot, new.token_ids))
            db.executemany(
                "INSERT INTO snapshot_chunks (snapshot_id, position, chunk_id) "
                "SELECT ?, ?, id FROM chunks WHERE key = ?",
                ((snapshot, position, key) for position, key in enumerate(new.chunks)),
            )
            this = {"snapshot": snapshot}
            losses = db.execute(_LOSSES, this).fetchall()
            db.executemany("UPDATE snapshots SET own_bytes = own_bytes - ?2 WHERE id = ?1", losses)
            db.execute(f"UPDATE chunks SET refs = refs + 1, owners = owners + :snapshot WHERE id IN ({_HELD})", this)
            size, own = db.execute(_SIZES, this).fetchone()
            db.execute("UPDATE snapshots SET own_bytes = ? WHERE id = ?", (own, snapshot))
            whence = (new.session_id, new.head, new.parent, new.model, len(new.token_ids) // 4, size, new.created_at)
            window = db.execute(_FREEZE, (new.name, snapshot, new.description, *whence)).lastrowid
            self._complete(window, snapshot, new.tags)
            db.execute(_REMEMBER_SESSION, (new.session_id, "frozen", new.created_at, window))

    def clone(self, source: str, target: str, tags: Sequence[str], now: Micros) -> None:
        with self.db as db:
            stem, snapshot = self._find(source)
            window = db.execute(_CLONE, (stem, target, None, now)).lastrowid
            self._complete(window, snapshot, tags)

    def bind(self, binding: Binding) -> None:
        with self.db as db:
            window, _ = self._find(binding.window_name)
            db.execute(
                "INSERT OR REPLACE INTO bindings (window_id, session_id, salt_hash, created_at) VALUES (?, ?, ?, ?)",
                (window, binding.session_id, binding.salt_hash, binding.created_at),
            )
            db.execute("UPDATE windows SET thawed_at = ? WHERE id = ?", (binding.created_at, window))
            db.execute(_REMEMBER_SESSION, (binding.session_id, "thawed", binding.created_at, window))

    def _find(self, name: str) -> tuple[int, int]:
        found: tuple[int, int] = self.db.execute(
            "SELECT id, snapshot_id FROM windows WHERE name = ?", (name,)
        ).fetchone()
        return found

    def _complete(self, window: int | None, snapshot: int | None, tags: Sequence[str]) -> None:
        self.db.execute("UPDATE snapshots SET windows = windows + 1 WHERE id = ?", (snapshot,))
        values = ((window, n, tag) for n, tag in enumerate(tags))
        self.db.executemany("INSERT INTO window_tags VALUES (?, ?, ?)", values)
        self.db.execute("DELETE FROM window_words WHERE rowid = ?", (window,))
        self.db.execute(_WORDS, (" ".join(tags), window))


LONGER = chain("a", 5)
FIRST = new_window("first", chain("a", 3), tags=["debug", "auth"], description="naïve planner", created_at=at(1))
SECOND = new_window("second", LONGER, LONGER[3:], parent="first", session_id="bob", model="large", created_at=at(2))
THAW = Binding("copy", "carol", b"s" * 32, at(4))


@pytest.fixture
def old(path: Path) -> Path:
    with closing((made := FirstSchema(path)).db):
        made.commit(FIRST)
        made.commit(SECOND)
        made.clone("first", "copy", ["wip"], at(3))
        made.bind(THAW)
    return path


def test_everything_that_was_there_is_there(old: Path) -> None:
    with closing(SqliteCatalog.open(old)) as catalog:
        catalog.check_integrity()
        first, second, copy = (catalog.window(name) for name in ("first", "second", "copy"))
        assert (first.description, first.tags, first.passport) == (FIRST.description, ("debug", "auth"), FIRST.passport)
        assert (first.session_id, first.head, first.parent, first.model) == ("session-1", "h1", None, "small")
        assert (first.token_count, first.restorable_tokens, first.block_count) == (773, 768, 3)
        assert (first.created_at, first.updated_at, first.thawed_at) == (at(1), at(1), None)
        assert (second.session_id, second.parent, second.model) == ("bob", "first", "large")
        assert (copy.parent, copy.tags, copy.thawed_at) == ("first", ("wip",), at(4))
        assert [row.unique_bytes for row in (first, second, copy)] == [0, sum(c.size_bytes for c in LONGER[3:]), 0]
        assert catalog.chunks_of("first") == catalog.chunks_of("copy") == tuple(LONGER[:3])
        assert catalog.chunks_of("second") == tuple(LONGER)
        assert catalog.token_ids_of("copy") == token_ids("first", LONGER[:3])
        assert catalog.bindings() == (THAW,)
        assert catalog.proof_of("first") is None
        assert (first.origin, copy.origin, copy.cloned) == (None, None, True)
        carol = catalog.session("carol")
        assert carol is not None
        assert (carol.event, carol.created_at, carol.token_count) == (SessionEvent.THAWED, at(4), 773)
        assert [row.session_id for row in catalog.sessions(SessionQuery()).sessions] == ["carol", "bob", "session-1"]
        assert catalog.list_windows(WindowQuery(search="naive")).total == 2
        stored = sum(row.size_bytes for row in LONGER)
        assert catalog.totals() == totals(3, 5, stored, stored + 2 * first.size_bytes)


def test_what_was_stored_is_on_disk_and_nobodys_claim(old: Path) -> None:
    with closing(SqliteCatalog.open(old)) as catalog:
        assert catalog.all_chunks() == tuple(
            ChunkRow(row.key, row.tokens, row.size_bytes, frozenset({TierName.DISK}), row.claim) for row in LONGER
        )
        assert {row.claim for row in catalog.all_chunks()} == {""}


def test_what_was_brought_up_to_date_can_be_worked_with(old: Path) -> None:
    with closing(SqliteCatalog.open(old)) as catalog:
        catalog.place(TierName.REDIS, [LONGER[0].key], [])
        catalog.commit_window(new_window("third", LONGER, stored=[]))
        catalog.tag_window("copy", ["new"], [], "text", at(9))
        assert catalog.delete_window("second").orphans == ()
        assert catalog.delete_window("third").orphans == tuple(LONGER[3:])
        catalog.delete_window("first")
        assert len(catalog.delete_window("copy").orphans) == 3
        assert catalog.totals() == totals(0, 0, 0, 0)
        catalog.check_integrity()


def test_it_happens_once_and_in_one_transaction(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(old)

    def killed(db: sqlite3.Connection) -> None:
        MIGRATIONS[1](db)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cwm_connector.catalog.sqlite.file.MIGRATIONS", (MIGRATIONS[0], killed))
        with pytest.raises(KeyboardInterrupt):
            SqliteCatalog.open(old)
    assert content(old) == before
    SqliteCatalog.open(old).close()
    after = content(old)
    SqliteCatalog.open(old).close()
    assert content(old) == after


KILLED = """
import os, signal, sys
from pathlib import Path
from cwm_connector.catalog.sqlite import schema
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
split = schema.split_by_chunk
def killed(db):
    split(db)
    os.kill(os.getpid(), signal.SIGKILL)
schema.split_by_chunk = killed
SqliteCatalog.open(Path(sys.argv[1]))
"""


def test_a_kill_in_the_middle_leaves_what_was_there(old: Path) -> None:
    before = content(old)
    assert subprocess.run([sys.executable, "-c", KILLED, str(old)], cwd=ROOT).returncode == -signal.SIGKILL
    assert content(old) == before
    with closing(SqliteCatalog.open(old)) as catalog:
        catalog.check_integrity()
        assert catalog.token_ids_of("second") == SECOND.token_ids


def test_token_ids_move_to_their_chunks(old: Path) -> None:
    SqliteCatalog.open(old).close()
    after = content(old)
    assert [len(ids) for _, ids in after["snapshot_tokens"]] == [4 * 5, 4 * 5]
    assert len(after["chunk_tokens"]) == 5


def bring_to(path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring a file up to an older schema than today's."""
    with monkeypatch.context() as patch:
        patch.setattr("cwm_connector.catalog.sqlite.file.MIGRATIONS", MIGRATIONS[:version])
        patch.setattr("cwm_connector.catalog.sqlite.file.SCHEMA_VERSION", version)
        SqliteCatalog.open(path).close()


def test_damaged_token_ids_stay_damaged_and_harm_no_other_window(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring_to(old, 3, monkeypatch)
    with closing(sqlite3.connect(old)) as raw, raw:
        raw.execute("UPDATE snapshot_tokens SET token_ids = zeroblob(length(token_ids)) WHERE snapshot_id = 1")
    with closing(SqliteCatalog.open(old)) as catalog:
        assert catalog.token_ids_of("second") == SECOND.token_ids
        with pytest.raises(CWMError, match="'first' is damaged"):
            catalog.token_ids_of("first")


@pytest.fixture
def seventh(old: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the seventh schema. Its index of words is that of the sixth step, which is empty by now."""
    bring_to(old, 7, monkeypatch)
    with closing(sqlite3.connect(old)) as raw, raw:
        raw.execute("DROP TABLE window_words")
        raw.execute(
            "CREATE VIRTUAL TABLE window_words USING fts5 "
            "(name UNINDEXED, description UNINDEXED, tags UNINDEXED, folded, tokenize = 'trigram')"
        )
        raw.execute("INSERT INTO window_words (rowid, name, folded) SELECT id, name, name FROM windows")
    return old


def test_a_search_finds_the_windows_of_a_file_with_an_index_of_words(seventh: Path) -> None:
    with closing(SqliteCatalog.open(seventh)) as catalog:
        catalog.check_integrity()
        found = catalog.list_windows(WindowQuery(search="econ"))
        assert [row.name for row in found.windows] == ["second"]
        catalog.delete_window("second")
        assert catalog.list_windows(WindowQuery(search="econ")).total == 0


def test_a_snapshot_that_was_damaged_stays_damaged_and_harms_no_other(seventh: Path) -> None:
    with closing(sqlite3.connect(seventh)) as raw, raw:
        raw.execute("UPDATE snapshots SET passport = '{}' WHERE id = 1")
    with closing(SqliteCatalog.open(seventh)) as catalog:
        assert catalog.window("second").passport == SECOND.passport
        with pytest.raises(CWMError, match="'first' is damaged"):
            catalog.window("first")


def test_a_reader_waits_for_the_engine_to_bring_it_up_to_date(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(CWMError, match="start the engine once") as refused:
        SqliteCatalog.open_read_only(old)
    assert (refused.value.code, refused.value.context) == (Code.STATE, {"found": 1, "known": SCHEMA_VERSION})
    assert old.read_bytes() == before


def test_a_damaged_file_of_the_first_schema_is_refused_and_left_alone(old: Path) -> None:
    with closing(sqlite3.connect(old)) as raw:
        (root,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'windows_by_model'").fetchone()
    data = bytearray(old.read_bytes())
    data[(root - 1) * 4096 + 100 : root * 4096] = bytes(4096 - 100)
    old.write_bytes(data)
    with pytest.raises(CWMError) as refused:
        SqliteCatalog.open(old)
    assert refused.value.code is Code.CORRUPT
    assert old.read_bytes() == bytes(data)
