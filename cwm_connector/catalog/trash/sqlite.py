"""The trash of the embedded catalog: rows of windows, moved to a table of their own. See `catalog/trash/base.py`.

A row in the trash counts as a window over its snapshot, so that the snapshot and its chunks stay.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from cwm_connector.catalog.base import DeletedWindow
from cwm_connector.catalog.session_pages import SessionEvent
from cwm_connector.catalog.sqlite.chunks import first_chunk, next_id
from cwm_connector.catalog.sqlite.rows import damaged_window, seal
from cwm_connector.catalog.sqlite.snapshots import read_snapshot, release_snapshot
from cwm_connector.catalog.sqlite.thaws import (
    forget_unused_sessions,
    remember_session,
    sessions_bound_to,
    sessions_of,
)
from cwm_connector.catalog.sqlite.windows import Tagged, Window, add_window, delete_window, find_window
from cwm_connector.catalog.trash.base import TrashedWindow, TrashTotals
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros

_FIELDS: Final = ", ".join([*(field.name for field in fields(Window)), "tags", "trashed_at", "command"])
_VALUES: Final = ", ".join("?" for _ in _FIELDS.split(", "))
_TOTALS: Final = """
    SELECT (SELECT count(*) FROM trash), ifnull(sum(c.size_bytes), 0) FROM chunks c
    WHERE c.id IN (SELECT h.chunk_id FROM trash t JOIN snapshot_chunks h ON h.snapshot_id = t.snapshot_id)
        AND NOT EXISTS (
            SELECT 1 FROM snapshot_chunks h JOIN windows w ON w.snapshot_id = h.snapshot_id WHERE h.chunk_id = c.id
        )
"""
_PLACE: Final = """
    SELECT t.id, i.snapshot_id FROM trash t JOIN trash i INDEXED BY trash_by_snapshot
        ON i.snapshot_id = t.snapshot_id AND i.id = t.id
    WHERE t.name = ? AND t.trashed_at = ?
"""
_KNOWN: Final = """
    SELECT 1 FROM trash t JOIN trash i INDEXED BY trash_by_name
        ON i.name = t.name AND i.trashed_at = t.trashed_at AND i.id = t.id
    WHERE t.id = ?
"""
_LAST: Final = "ORDER BY trashed_at DESC, id DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the table."""

    window: Window
    """The window as it was. Its id is that of the row."""
    tags: tuple[str, ...]
    trashed_at: Micros
    command: str

    def values(self) -> tuple[Any, ...]:
        """Return all fields, the checksum last."""
        stored = (*self.window.values(), json.dumps(self.tags), self.trashed_at, self.command)
        return (*stored, seal("trash", *stored))

    def shown(self) -> TrashedWindow:
        """Return the window as the interface has it."""
        window = self.window
        return TrashedWindow(window.name, window.token_count, window.size_bytes, self.trashed_at, self.command)


class SqliteTrash:
    """`Trash` in the tables of an embedded catalog."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[..., AbstractContextManager[sqlite3.Connection]],
        found: Callable[[sqlite3.Connection, str], Tagged],
        follow_beginning: Callable[[ChunkKey, int], None],
    ) -> None:
        """Take the catalog's transactions, its look-up of a window by name and what it calls for a new beginning."""
        self._writing = writing
        self._reading = reading
        self._found = found
        self._follow_beginning = follow_beginning

    def put(self, name: str, command: str, now: Micros) -> TrashedWindow:
        with self._writing() as db:
            before = self._found(db, name)
            read_snapshot(db, before.window.snapshot_id, name)
            sessions = sessions_bound_to(db, before.window.id)
            entry = _Entry(replace(before.window, id=next_id(db, "trash")), before.tags, now, command)
            delete_window(db, before.window.id)
            db.execute(f"INSERT INTO trash ({_FIELDS}, digest) VALUES ({_VALUES}, ?)", entry.values())
            forget_unused_sessions(db, sessions)
            return entry.shown()

    def restore(self, name: str | None, new_name: str | None, now: Micros) -> tuple[str, ...]:
        with self._writing() as db:
            chosen = _last_of(db, name) if name is not None else _last_command(db)
            return tuple(self._restore(db, entry, new_name or entry.window.name, now) for entry in chosen)

    def _restore(self, db: sqlite3.Connection, entry: _Entry, name: str, now: Micros) -> str:
        if find_window(db, name) is not None:
            raise _taken(entry.window.name, name)
        parent = None if entry.window.parent == name else entry.window.parent
        renamed_at = entry.window.updated_at if name == entry.window.name else now
        window = replace(entry.window, id=next_id(db, "windows"), name=name, parent=parent, updated_at=renamed_at)
        add_window(db, window, entry.tags)
        db.execute("DELETE FROM trash WHERE id = ?", (entry.window.id,))
        if not window.private and read_snapshot(db, window.snapshot_id, name).block_count:
            self._follow_beginning(*first_chunk(db, window.snapshot_id))
        if not sessions_of(db, [window.session_id]):
            remember_session(db, window.session_id, window, SessionEvent.FROZEN, window.created_at)
        return name

    def purge(self, name: str, trashed_at: Micros, keep: Iterable[ChunkKey] = ()) -> DeletedWindow:
        with self._writing() as db:
            number, snapshot_id = _place_of(db, name, trashed_at)
            db.execute("DELETE FROM trash WHERE id = ?", (number,))
            return release_snapshot(db, snapshot_id, name, keep)

    def listed(self) -> tuple[TrashedWindow, ...]:
        with self._reading("trash") as db:
            rows = db.execute(f"SELECT {_FIELDS}, digest FROM trash ORDER BY trashed_at, id").fetchall()
            return tuple(shown for row in rows if (shown := _shown(db, row)) is not None)

    def totals(self) -> TrashTotals:
        with self._reading("trash", "snapshot_chunks", "chunks", "windows") as db:
            windows, freeable_bytes = db.execute(_TOTALS).fetchone()
            return TrashTotals(windows, freeable_bytes)


def check_trash(db: sqlite3.Connection) -> None:
    """Raise `Code.CORRUPT` for a row of the trash that fails its checksum."""
    _entries(db, "", ())


def rename_parent(db: sqlite3.Connection, name: str, new_name: str) -> None:
    """Follow the renaming of a window in the rows of its children. Raises `Code.CORRUPT` if one is damaged."""
    for entry in _entries(db, "WHERE parent = ?", (name,)):
        after = replace(entry, window=replace(entry.window, parent=new_name))
        *_, digest = after.values()
        db.execute("UPDATE trash SET parent = ?, digest = ? WHERE id = ?", (new_name, digest, entry.window.id))


def _last_of(db: sqlite3.Connection, name: str) -> list[_Entry]:
    found = _entries(db, f"WHERE name = ? {_LAST}", (name,))
    if not found:
        raise _not_there(name)
    return found


def _last_command(db: sqlite3.Connection) -> list[_Entry]:
    last = db.execute(f"SELECT command FROM trash {_LAST}").fetchone()
    if last is None:
        raise CWMError(Code.WINDOW_NOT_FOUND, "the trash is empty, so there is nothing to bring back")
    return _entries(db, "WHERE command = ? ORDER BY trashed_at, id", last)


def _entries(db: sqlite3.Connection, condition: str, values: Sequence[object]) -> list[_Entry]:
    """Return the rows that a condition selects. Raises `Code.CORRUPT` if one is damaged."""
    return [_entry(row) for row in db.execute(f"SELECT {_FIELDS}, digest FROM trash {condition}", values).fetchall()]


def _entry(row: Sequence[Any]) -> _Entry:
    *window, tags, trashed_at, command, _ = row
    if not _is_sound(row):
        raise damaged_window(str(window[1]))
    return _Entry(Window(*window), tuple(json.loads(tags)), trashed_at, command)


def _is_sound(row: Sequence[Any]) -> bool:
    return bool(seal("trash", *row[:-1]) == row[-1])


def _shown(db: sqlite3.Connection, row: Sequence[Any]) -> TrashedWindow | None:
    """Return the window of a row, or None if not even its name and its time are certain.

    The checksum confirms them, or else the index of names.
    """
    if _is_sound(row):
        return _entry(row).shown()
    has_types = isinstance(row[1], str) and isinstance(row[-3], int)
    return _unreadable(row) if has_types and db.execute(_KNOWN, row[:1]).fetchone() is not None else None


def _unreadable(row: Sequence[Any]) -> TrashedWindow:
    return TrashedWindow(row[1], token_count=0, size_bytes=0, trashed_at=row[-3], command="", damaged=True)


def _place_of(db: sqlite3.Connection, name: str, trashed_at: Micros) -> tuple[int, int]:
    """Return the ids of a row and of its snapshot, which may be damaged otherwise.

    Raises `Code.WINDOW_NOT_FOUND`, `Code.CORRUPT` if the row and the index disagree about the snapshot.
    """
    found = db.execute(_PLACE, (name, trashed_at)).fetchone()
    if found is not None:
        return int(found[0]), int(found[1])
    if db.execute("SELECT 1 FROM trash WHERE name = ? AND trashed_at = ?", (name, trashed_at)).fetchone():
        raise damaged_window(name)
    raise _not_there(name)


def _not_there(name: str) -> CWMError:
    return CWMError(
        Code.WINDOW_NOT_FOUND, f"no window named {name!r} is in the trash; cwm undo --list shows what is", window=name
    )


def _taken(name: str, wanted: str) -> CWMError:
    return CWMError(
        Code.WINDOW_EXISTS,
        f"a window named {wanted!r} exists again; bring the deleted one back under another name: "
        f"cwm undo {name} --as OTHER",
        window_name=wanted,
    )
