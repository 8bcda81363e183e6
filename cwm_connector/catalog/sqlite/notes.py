"""Short texts that an engine keeps over restarts, in the embedded catalog. Inside the caller's transaction."""

import sqlite3

from cwm_connector.catalog.sqlite.chunks import next_id
from cwm_connector.catalog.sqlite.rows import damaged, seal


def write_note(db: sqlite3.Connection, name: str, text: str | None) -> None:
    """None forgets it."""
    db.execute("DELETE FROM notes WHERE name = ?", (name,))
    if text is not None:
        values = (next_id(db, "notes"), name, text)
        db.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", (*values, seal("note", *values)))


def read_note(db: sqlite3.Connection, name: str) -> str | None:
    """Raises: CWM-4004."""
    fields = db.execute("SELECT id, name, note, digest FROM notes WHERE name = ?", (name,)).fetchone()
    if fields is None:
        return None
    if seal("note", *fields[:-1]) != fields[-1] or fields[1] != name:
        raise damaged(f"note {name!r}")
    return str(fields[2])
