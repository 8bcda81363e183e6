"""The window rows of the embedded catalog with their tags and texts: read and check, seal and write them.

Every function runs inside the caller's transaction.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final

from cwm_connector.catalog.base import WindowRow
from cwm_connector.catalog.sqlite.rows import damaged_window, seal
from cwm_connector.catalog.sqlite.snapshots import read_snapshot
from cwm_connector.catalog.words import searched_text
from cwm_connector.core.errors import CWMError
from cwm_connector.core.names import check_tags, name_taken
from cwm_connector.core.types import Micros

_FIELDS: Final = (
    "id, name, snapshot_id, description, session_id, head, parent, cloned, model, token_count, size_bytes, "
    "created_at, updated_at, thawed_at, private"
)
_INSERT: Final = f"INSERT INTO windows ({_FIELDS}, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UNKNOWN: Final = Micros(0)


@dataclass(frozen=True, slots=True)
class Window:
    """A row of the table."""

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
    private: int

    def values(self) -> tuple[Any, ...]:
        """Return the fields in their order. `dataclasses.astuple` copies each of them and takes ten times as long."""
        return _VALUES_OF(self)


_VALUES_OF: Final = attrgetter(*(field.name for field in fields(Window)))


@dataclass(frozen=True, slots=True)
class Tagged:
    """A window's row and its tags, which one checksum covers."""

    window: Window
    tags: tuple[str, ...]

    def digest(self) -> int:
        """Return the checksum."""
        return seal("window", *self.window.values(), *self.tags)

    def text(self) -> str:
        """Return what a search looks at."""
        return searched_text(self.window.name, self.window.description, self.tags)


def find_window(db: sqlite3.Connection, name: str) -> int | None:
    """Return the id of the window, or None. Only the index of the names is read."""
    row = db.execute("SELECT id FROM windows WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def refuse_taken_name(db: sqlite3.Connection, name: str) -> None:
    """Raise `Code.WINDOW_EXISTS` if there is a window of that name."""
    if find_window(db, name) is not None:
        raise name_taken(name)


def read_window_named(db: sqlite3.Connection, window: int, name: str) -> Tagged:
    """Return the window that `find_window` found, after a check of its name.

    Raises `Code.CORRUPT` if a damaged index has led to another window.
    """
    found = read_window(db, window)
    if found.window.name != name:
        raise damaged_window(name)
    return found


def read_window(db: sqlite3.Connection, window: int) -> Tagged:
    """Return the window with its tags. Raises `Code.CORRUPT` if it is damaged or missing."""
    row = db.execute(f"SELECT {_FIELDS}, digest FROM windows WHERE id = ?", (window,)).fetchone()
    if row is not None:
        found = Tagged(Window(*row[:-1]), _tags(db, window))
        if found.digest() == row[-1]:
            return found
    raise damaged_window(certain_name(db, window) or f"number {window}")


def contract_row(db: sqlite3.Connection, found: Tagged) -> WindowRow:
    """Return the window as the catalog's interface has it. Raises `Code.CORRUPT` if its snapshot is damaged."""
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
        private=bool(window.private),
        origin=snapshot.imported_from(),
    )


def list_window(db: sqlite3.Connection, window: int) -> WindowRow:
    """Return the window, or only the name of a damaged one. Raises `Code.CORRUPT` if the name is not certain either."""
    try:
        return contract_row(db, read_window(db, window))
    except CWMError:
        name = certain_name(db, window)
        if name is None:
            raise
    return WindowRow(
        name=name,
        description="",
        tags=(),
        model="",
        passport={},
        session_id="",
        head="",
        parent=None,
        token_count=0,
        restorable_tokens=0,
        block_count=0,
        size_bytes=0,
        unique_bytes=0,
        created_at=_UNKNOWN,
        updated_at=_UNKNOWN,
        thawed_at=None,
        damaged=True,
    )


def certain_name(db: sqlite3.Connection, window: int) -> str | None:
    """Return the name of a window that may be damaged, or None if its row and the index of the names disagree."""
    rows = db.execute(
        """
        SELECT i.name FROM windows w JOIN windows i INDEXED BY sqlite_autoindex_windows_1 ON i.name = w.name
        WHERE w.id = ?1 AND i.id = ?1
        """,
        (window,),
    ).fetchall()
    return str(rows[0][0]) if rows else None


def snapshot_of(db: sqlite3.Connection, window: int, name: str) -> int:
    """Return the id of the snapshot of a window that may be damaged.

    Raises `Code.CORRUPT` if the row and the index disagree about it.
    """
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
    """Add the row, its tags and its text. Raises `Code.ARGUMENT` for an invalid tag or too many tags."""
    tagged = Tagged(window, tuple(check_tags(list(tags))))
    db.execute(_INSERT, (*window.values(), tagged.digest()))
    _write_tags(db, tagged)
    db.execute("INSERT INTO window_texts (window_id, text) VALUES (?, ?)", (window.id, tagged.text()))


def change_window(db: sqlite3.Connection, before: Tagged, after: Tagged) -> None:
    """Change the description, the tags or the times. `before` was read in this transaction."""
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
        _change_text(db, after)


def rename_window(db: sqlite3.Connection, before: Tagged, name: str, now: Micros) -> Tagged:
    """Give the window that `before` describes another name, also as the parent of its children.

    Raises `Code.WINDOW_EXISTS` if the name is taken, `Code.CORRUPT` if a child is damaged.
    """
    refuse_taken_name(db, name)
    for (child,) in db.execute("SELECT id FROM windows WHERE parent = ?", (before.window.name,)).fetchall():
        found = read_window(db, child)
        _set_parent(db, replace(found, window=replace(found.window, parent=name)))
    after = read_window(db, before.window.id)
    parent = None if after.window.parent == name else after.window.parent
    after = replace(after, window=replace(after.window, name=name, parent=parent, updated_at=now))
    db.execute("UPDATE windows SET name = ?, updated_at = ? WHERE id = ?", (name, now, after.window.id))
    _set_parent(db, after)
    _change_text(db, after)
    return after


def _set_parent(db: sqlite3.Connection, after: Tagged) -> None:
    window = after.window
    db.execute("UPDATE windows SET parent = ?, digest = ? WHERE id = ?", (window.parent, after.digest(), window.id))


def delete_window(db: sqlite3.Connection, window: int) -> None:
    """Delete the row with its text, tags and bindings."""
    db.execute("DELETE FROM windows WHERE id = ?", (window,))


def read_text(db: sqlite3.Connection, window: int) -> str | None:
    """Return the text that a search finds the window by, or None if it is missing."""
    row = db.execute("SELECT text FROM window_texts WHERE window_id = ?", (window,)).fetchone()
    return None if row is None else str(row[0])


def _change_text(db: sqlite3.Connection, after: Tagged) -> None:
    db.execute("UPDATE window_texts SET text = ? WHERE window_id = ?", (after.text(), after.window.id))


def children_of(db: sqlite3.Connection, name: str) -> tuple[str, ...]:
    """Return the names of the windows whose parent has this name, oldest first."""
    rows = db.execute("SELECT name FROM windows WHERE parent = ? ORDER BY created_at, id", (name,))
    return tuple(child for (child,) in rows)


def _write_tags(db: sqlite3.Connection, tagged: Tagged) -> None:
    values = ((tagged.window.id, position, tag) for position, tag in enumerate(tagged.tags))
    db.executemany("INSERT INTO window_tags VALUES (?, ?, ?)", values)


def _tags(db: sqlite3.Connection, window: int) -> tuple[str, ...]:
    rows = db.execute("SELECT tag FROM window_tags WHERE window_id = ? ORDER BY position", (window,))
    return tuple(tag for (tag,) in rows)
