"""The notes of the embedded catalog: short texts that an engine stores under a name, to find them after a restart.

Used for the position of a verification, the policy of auto-freeze and a replica's position in the shared log. The
functions run inside the caller's transaction.
"""

import sqlite3

from cwm_connector.catalog.sqlite.chunks import next_id
from cwm_connector.catalog.sqlite.rows import damaged, seal


def write_note(db: sqlite3.Connection, name: str, text: str | None) -> None:
    """Store the text under the name in place of an older one. A text of None removes the note."""
    db.execute("DELETE FROM notes WHERE name = ?", (name,))
    if text is not None:
        values = (next_id(db, "notes"), name, text)
        db.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", (*values, seal("note", *values)))


def read_note(db: sqlite3.Connection, name: str) -> str | None:
    """Return the note, or None if there is none. Raises `Code.CORRUPT` if it is damaged."""
    fields = db.execute("SELECT id, name, note, digest FROM notes WHERE name = ?", (name,)).fetchone()
    if fields is None:
        return None
    if seal("note", *fields[:-1]) != fields[-1] or fields[1] != name:
        raise damaged(f"note {name!r}")
    return str(fields[2])
