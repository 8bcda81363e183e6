"""Windows in the embedded catalog: their rows with tags and words, read and checked, written and sealed.

Every function runs inside its caller's transaction.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Final

from cwm_connector.catalog.base import WindowRow
from cwm_connector.catalog.sqlite.rows import damaged_window, seal
from cwm_connector.catalog.sqlite.snapshots import read_snapshot
from cwm_connector.core.errors import CWMError
from cwm_connector.core.names import check_tags, name_taken
from cwm_connector.core.types import Micros

_FIELDS: Final = (
    "id, name, snapshot_id, description, session_id, head, parent, cloned, model, token_count, size_bytes, "
    "created_at, updated_at, thawed_at"
)
_INSERT: Final = f"INSERT INTO windows ({_FIELDS}, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_WORDS: Final = "window_words (rowid, name, description, tags) VALUES (?, ?, ?, ?)"
_UNKNOWN: Final = Micros(0)


@dataclass(frozen=True, slots=True)
class Window:
    """A row of the table, as it stands there."""

    id: int
    name: str
    snapshot_id: int
    description: str
    session_id: str
    head: str
    parent: str | None
    cloned: int
    model: str
    token_count: int
    size_bytes: int
    created_at: Micros
    updated_at: Micros
    thawed_at: Micros | None


@dataclass(frozen=True, slots=True)
class Tagged:
    """A window's row and its tags, which one checksum covers."""

    window: Window
    tags: tuple[str, ...]

    def digest(self) -> int:
        return seal("window", *astuple(self.window), *self.tags)


def find_window(db: sqlite3.Connection, name: str) -> int | None:
    """Its id, by the index of the names alone."""
    row = db.execute("SELECT id FROM windows WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def refuse_taken_name(db: sqlite3.Connection, name: str) -> None:
    """Raises: CWM-3003."""
    if find_window(db, name) is not None:
        raise name_taken(name)


def read_window_named(db: sqlite3.Connection, window: int, name: str) -> Tagged:
    """What `find_window` found, or CWM-4004: a damaged index can lead to another window, which is whole."""
    found = read_window(db, window)
    if found.window.name != name:
        raise damaged_window(name)
    return found


def read_window(db: sqlite3.Connection, window: int) -> Tagged:
    """Raises: CWM-4004."""
    fields = db.execute(f"SELECT {_FIELDS}, digest FROM windows WHERE id = ?", (window,)).fetchone()
    if fields is not None:
        found = Tagged(Window(*fields[:-1]), _tags(db, window))
        if found.digest() == fields[-1]:
            return found
    raise damaged_window(certain_name(db, window) or f"number {window}")


def contract_row(db: sqlite3.Connection, found: Tagged) -> WindowRow:
    """Raises: CWM-4004."""
    window = found.window
    snapshot = read_snapshot(db, window.snapshot_id, window.name)
    return WindowRow(
        name=window.name,
        description=window.description,
        tags=found.tags,
        model=window.model,
        passport=json.loads(snapshot.passport),
        session_id=window.session_id,
        head=window.head,
        parent=window.parent,
        token_count=window.token_count,
        restorable_tokens=snapshot.restorable_tokens,
        block_count=snapshot.block_count,
        size_bytes=window.size_bytes,
        unique_bytes=snapshot.unique_bytes(),
        created_at=window.created_at,
        updated_at=window.updated_at,
        thawed_at=window.thawed_at,
        cloned=bool(window.cloned),
    )


def list_window(db: sqlite3.Connection, window: int) -> WindowRow:
    """The row; of a damaged one the name alone. Raises: CWM-4004 if not even that can be trusted."""
    try:
        return contract_row(db, read_window(db, window))
    except CWMError:
        name = certain_name(db, window)
        if name is None:
            raise
    return WindowRow(name, "", (), "", {}, "", "", None, 0, 0, 0, 0, 0, _UNKNOWN, _UNKNOWN, None, damaged=True)


def certain_name(db: sqlite3.Connection, window: int) -> str | None:
    """The window's name, whatever else of it is damaged, if its row and the index of the names agree on it."""
    rows = db.execute(
        """
        SELECT i.name FROM windows w JOIN windows i INDEXED BY sqlite_autoindex_windows_1 ON i.name = w.name
        WHERE w.id = ?1 AND i.id = ?1
        """,
        (window,),
    ).fetchall()
    return str(rows[0][0]) if rows else None


def snapshot_of(db: sqlite3.Connection, window: int, name: str) -> int:
    """The snapshot's id, also of a window that is damaged elsewhere. Raises: CWM-4004 if row and index differ."""
    row = db.execute(
        """
        SELECT i.snapshot_id FROM windows w JOIN windows i INDEXED BY windows_by_snapshot
            ON i.snapshot_id = w.snapshot_id AND i.id = w.id
        WHERE w.id = ? AND w.name = ?
        """,
        (window, name),
    ).fetchone()
    if row is None:
        raise damaged_window(name)
    return int(row[0])


def add_window(db: sqlite3.Connection, window: Window, tags: Sequence[str]) -> None:
    """The row with its tags and words. Raises: CWM-1003 for a tag that can't be one, or too many."""
    tagged = Tagged(window, tuple(check_tags(list(tags))))
    db.execute(_INSERT, (*astuple(window), tagged.digest()))
    _write_tags(db, tagged)
    write_words(db, tagged)


def change_window(db: sqlite3.Connection, before: Tagged, after: Tagged) -> None:
    """What can change of a window: description, tags, times. `before` was read in this transaction."""
    window = after.window
    after = replace(after, tags=tuple(check_tags(list(after.tags))))
    db.execute(
        "UPDATE windows SET description = ?, updated_at = ?, thawed_at = ?, digest = ? WHERE id = ?",
        (window.description, window.updated_at, window.thawed_at, after.digest(), window.id),
    )
    if after.tags != before.tags:
        db.execute("DELETE FROM window_tags WHERE window_id = ?", (window.id,))
        _write_tags(db, after)
    if (after.tags, window.description) != (before.tags, before.window.description):
        db.execute("DELETE FROM window_words WHERE rowid = ?", (window.id,))
        write_words(db, after)


def delete_window(db: sqlite3.Connection, window: int) -> None:
    """Tags and bindings go with it."""
    db.execute("DELETE FROM window_words WHERE rowid = ?", (window,))
    db.execute("DELETE FROM windows WHERE id = ?", (window,))


def write_words(db: sqlite3.Connection, tagged: Tagged) -> None:
    """What `search` looks in; in a catalog read only, its own table of that name."""
    window = tagged.window
    db.execute(f"INSERT INTO {_WORDS}", (window.id, window.name, window.description, " ".join(tagged.tags)))


def children_of(db: sqlite3.Connection, name: str) -> tuple[str, ...]:
    rows = db.execute("SELECT name FROM windows WHERE parent = ? ORDER BY created_at, id", (name,))
    return tuple(child for (child,) in rows)


def _write_tags(db: sqlite3.Connection, tagged: Tagged) -> None:
    values = ((tagged.window.id, position, tag) for position, tag in enumerate(tagged.tags))
    db.executemany("INSERT INTO window_tags VALUES (?, ?, ?)", values)


def _tags(db: sqlite3.Connection, window: int) -> tuple[str, ...]:
    rows = db.execute("SELECT tag FROM window_tags WHERE window_id = ? ORDER BY position", (window,))
    return tuple(tag for (tag,) in rows)
