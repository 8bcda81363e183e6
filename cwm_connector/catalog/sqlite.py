"""The embedded catalog: one SQLite file beside the disk tier, needing no server.

What the tables promise each other stands in `sqlite_schema.py`; how a transaction becomes durable in `sqlite_file.py`.
A catalog may be used only by the thread that opened it: sqlite3 refuses any other, and no lock of ours is needed.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cwm_connector.catalog.base import (
    Binding,
    CatalogTotals,
    ChunkRow,
    DeletedWindow,
    NewWindow,
    SessionEvent,
    SessionRow,
    WindowPage,
    WindowQuery,
    WindowRow,
)
from cwm_connector.catalog.sqlite_check import first_inconsistency
from cwm_connector.catalog.sqlite_file import BUSY_TIMEOUT_S, SqliteFile
from cwm_connector.catalog.sqlite_query import count_of, page_of
from cwm_connector.catalog.sqlite_snapshots import (
    add_snapshot,
    chunks_of_snapshot,
    delete_chunks,
    drop_snapshot,
    row_id,
)
from cwm_connector.protocol import Code, CWMError, check_tags
from cwm_connector.terms import ChunkKey, Micros

_WINDOW = """
    SELECT w.name, w.description, w.model, s.passport, w.session_id, w.head, w.parent, w.token_count,
        s.restorable_tokens, s.block_count, w.size_bytes, iif(s.windows = 1, s.own_bytes, 0),
        w.created_at, w.updated_at, w.thawed_at
    FROM windows w JOIN snapshots s ON s.id = w.snapshot_id WHERE w.id = ?
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
_SESSION = "SELECT session_id, model, token_count, event, created_at, updated_at FROM sessions"
_FROZEN_NEWEST_FIRST = "cloned = 0 ORDER BY created_at DESC, id DESC"


class SqliteCatalog:
    """`Catalog` in one file. The engine opens it with `open`, clients with `open_read_only`."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "SqliteCatalog":
        """See `SqliteFile.open`; the folder must exist."""
        return cls(SqliteFile.open(path, busy_timeout_s))

    @classmethod
    def open_read_only(cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "SqliteCatalog":
        """See `SqliteFile.open_read_only`. The writing methods then fail with CWM-8001."""
        return cls(SqliteFile.open_read_only(path, busy_timeout_s))

    def commit_window(self, new: NewWindow) -> WindowRow:
        with self._file.writing() as db:
            _refuse_taken_name(db, new.name)
            snapshot = add_snapshot(db, new)
            whence = (new.session_id, new.head, new.parent)
            sizes = (new.model, snapshot.token_count, snapshot.size_bytes)
            values = (new.name, snapshot.id, new.description, *whence, *sizes, new.created_at)
            window = row_id(db.execute(_FREEZE, values))
            _complete(db, window, snapshot.id, new.tags)
            db.execute(_REMEMBER_SESSION, (new.session_id, SessionEvent.FROZEN.value, new.created_at, window))
            return _load(db, window)

    def clone_window(
        self, source: str, target: str, description: str | None, tags: Sequence[str] | None, now: Micros
    ) -> WindowRow:
        with self._file.writing() as db:
            stem, snapshot = _find(db, source)
            _refuse_taken_name(db, target)
            window = row_id(db.execute(_CLONE, (stem, target, description, now)))
            _complete(db, window, snapshot, _tags(db, stem) if tags is None else tags)
            return _load(db, window)

    def delete_window(self, name: str, keep: Iterable[ChunkKey] = ()) -> DeletedWindow:
        with self._file.writing() as db:
            window, snapshot = _find(db, name)
            db.execute("DELETE FROM window_words WHERE rowid = ?", (window,))
            db.execute("DELETE FROM windows WHERE id = ?", (window,))
            db.execute("UPDATE snapshots SET windows = windows - 1 WHERE id = ?", (snapshot,))
            left, blocks = db.execute("SELECT windows, block_count FROM snapshots WHERE id = ?", (snapshot,)).fetchone()
            return DeletedWindow((), shared=blocks) if left else drop_snapshot(db, snapshot, keep)

    def sweep_unreferenced(self, keep: Iterable[ChunkKey] = ()) -> tuple[ChunkRow, ...]:
        kept = frozenset(keep)
        with self._file.writing() as db:
            rows = _chunk_rows(db.execute("SELECT key, tokens, size_bytes FROM chunks WHERE refs = 0"))
            swept = tuple(row for row in rows if row.key not in kept)
            delete_chunks(db, swept)
            return swept

    def tag_window(
        self, name: str, add: Sequence[str], remove: Sequence[str], description: str | None, now: Micros
    ) -> WindowRow:
        """A tag that is both removed and added stays. Raises: CWM-1003 if there would be too many tags."""
        with self._file.writing() as db:
            window, _ = _find(db, name)
            before = _load(db, window)
            description = before.description if description is None else description
            db.execute("UPDATE windows SET description = ?, updated_at = ? WHERE id = ?", (description, now, window))
            _set_tags(db, window, [*(tag for tag in before.tags if tag not in remove), *add])
            _set_words(db, window)
            return _load(db, window)

    def window(self, name: str) -> WindowRow:
        with self._file.reading() as db:
            return _load(db, _find(db, name)[0])

    def children(self, name: str) -> tuple[str, ...]:
        with self._file.reading() as db:
            rows = db.execute("SELECT name FROM windows WHERE parent = ? ORDER BY created_at, id", (name,))
            return tuple(child for (child,) in rows)

    def chunks_of(self, name: str) -> tuple[ChunkRow, ...]:
        with self._file.reading() as db:
            return chunks_of_snapshot(db, _find(db, name)[1])

    def token_ids_of(self, name: str) -> bytes:
        with self._file.reading() as db:
            snapshot = _find(db, name)[1]
            (ids,) = db.execute("SELECT token_ids FROM snapshot_tokens WHERE snapshot_id = ?", (snapshot,)).fetchone()
            return bytes(ids)

    def stored(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, ChunkRow]:
        found = {}
        with self._file.reading() as db:
            for key in keys:
                row = db.execute("SELECT tokens, size_bytes FROM chunks WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = ChunkRow(key, *row)
        return found

    def all_chunks(self) -> tuple[ChunkRow, ...]:
        with self._file.reading() as db:
            return _chunk_rows(db.execute("SELECT key, tokens, size_bytes FROM chunks ORDER BY id"))

    def list_windows(self, query: WindowQuery) -> WindowPage:
        count, page = count_of(query), page_of(query)
        with self._file.reading() as db:
            (total,) = db.execute(count.sql, count.values).fetchone()
            ids = db.execute(page.sql, page.values).fetchall()
            return WindowPage(tuple(_load(db, window) for (window,) in ids), total)

    def bind(self, binding: Binding) -> None:
        with self._file.writing() as db:
            window, _ = _find(db, binding.window_name)
            db.execute(
                "INSERT OR REPLACE INTO bindings (window_id, session_id, salt_hash, created_at) VALUES (?, ?, ?, ?)",
                (window, binding.session_id, binding.salt_hash, binding.created_at),
            )
            db.execute("UPDATE windows SET thawed_at = ? WHERE id = ?", (binding.created_at, window))
            values = (binding.session_id, SessionEvent.THAWED.value, binding.created_at, window)
            db.execute(_REMEMBER_SESSION, values)

    def bindings(self) -> tuple[Binding, ...]:
        with self._file.reading() as db:
            rows = db.execute(
                """
                SELECT w.name, b.session_id, b.salt_hash, b.created_at
                FROM bindings b JOIN windows w ON w.id = b.window_id ORDER BY b.created_at, b.id
                """
            )
            return tuple(Binding(*row) for row in rows)

    def session(self, session_id: str) -> SessionRow | None:
        with self._file.reading() as db:
            row = db.execute(f"{_SESSION} WHERE session_id = ?", (session_id,)).fetchone()
            if row is None:
                return None
            names = db.execute(
                f"SELECT name FROM windows WHERE session_id = ? AND {_FROZEN_NEWEST_FIRST}", (session_id,)
            )
            return _session_row(row, [name for (name,) in names])

    def sessions(self) -> tuple[SessionRow, ...]:
        with self._file.reading() as db:
            names = defaultdict(list)
            for session_id, name in db.execute(f"SELECT session_id, name FROM windows WHERE {_FROZEN_NEWEST_FIRST}"):
                names[session_id].append(name)
            rows = db.execute(f"{_SESSION} ORDER BY updated_at DESC, session_id").fetchall()
            return tuple(_session_row(row, names[row[0]]) for row in rows)

    def totals(self) -> CatalogTotals:
        with self._file.reading() as db:
            windows, referenced = db.execute("SELECT count(*), ifnull(sum(size_bytes), 0) FROM windows").fetchone()
            chunks, stored = db.execute("SELECT chunks, size_bytes FROM chunk_totals").fetchone()
            return CatalogTotals(windows, chunks, stored, referenced)

    def check_integrity(self) -> None:
        with self._file.reading() as db:
            fault = first_inconsistency(db)
        if fault is not None:
            raise CWMError(
                Code.CORRUPT,
                f"the catalog {self._file.path} is inconsistent: {fault}; restore it from a copy",
                fault=fault,
            )

    def close(self) -> None:
        self._file.close()


# Each of these runs inside its caller's transaction.


def _find(db: sqlite3.Connection, name: str) -> tuple[int, int]:
    """The ids of the window and of its snapshot. Raises: CWM-2002."""
    row = db.execute("SELECT id, snapshot_id FROM windows WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise CWMError(Code.WINDOW_NOT_FOUND, f"no window named {name!r}; window_list shows what there is", window=name)
    return row[0], row[1]


def _refuse_taken_name(db: sqlite3.Connection, name: str) -> None:
    if db.execute("SELECT 1 FROM windows WHERE name = ?", (name,)).fetchone():
        raise CWMError(
            Code.WINDOW_EXISTS,
            f"a window named {name!r} exists already; choose another name or delete that window first",
            window=name,
        )


def _complete(db: sqlite3.Connection, window: int, snapshot: int, tags: Sequence[str]) -> None:
    """What belongs to a new window's row beside it."""
    db.execute("UPDATE snapshots SET windows = windows + 1 WHERE id = ?", (snapshot,))
    _set_tags(db, window, tags)
    _set_words(db, window)


def _set_tags(db: sqlite3.Connection, window: int, tags: Sequence[str]) -> None:
    unique = check_tags(list(tags))
    db.execute("DELETE FROM window_tags WHERE window_id = ?", (window,))
    db.executemany("INSERT INTO window_tags VALUES (?, ?, ?)", ((window, n, tag) for n, tag in enumerate(unique)))


def _set_words(db: sqlite3.Connection, window: int) -> None:
    """Brings what `search` looks in up to date with the window's row and tags."""
    db.execute("DELETE FROM window_words WHERE rowid = ?", (window,))
    db.execute(
        """
        INSERT INTO window_words (rowid, name, description, tags)
        SELECT id, name, description, ? FROM windows WHERE id = ?
        """,
        (" ".join(_tags(db, window)), window),
    )


def _tags(db: sqlite3.Connection, window: int) -> tuple[str, ...]:
    rows = db.execute("SELECT tag FROM window_tags WHERE window_id = ? ORDER BY position", (window,))
    return tuple(tag for (tag,) in rows)


def _load(db: sqlite3.Connection, window: int) -> WindowRow:
    name, description, model, passport, *rest = db.execute(_WINDOW, (window,)).fetchone()
    return WindowRow(name, description, _tags(db, window), model, json.loads(passport), *rest)


def _session_row(row: Sequence[Any], windows: Sequence[str]) -> SessionRow:
    session_id, model, tokens, event, created_at, updated_at = row
    return SessionRow(session_id, model, tokens, SessionEvent(event), created_at, updated_at, tuple(windows))


def _chunk_rows(rows: Iterable[tuple[bytes, int, int]]) -> tuple[ChunkRow, ...]:
    return tuple(ChunkRow(ChunkKey(key), tokens, size) for key, tokens, size in rows)
