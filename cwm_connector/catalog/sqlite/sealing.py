"""Parts of the schema's migration steps: seal the rows that an older version wrote without a checksum, or with another.

The fields listed here are those of the steps and must not change. The modules that write a row define what its checksum
covers today.
"""

import sqlite3
from collections.abc import Iterator
from typing import Any

from cwm_connector.catalog.sqlite.rows import seal, seal_bytes

_SEALED = (
    "UPDATE chunks SET digest = seal('chunk', id, key, tokens, size_bytes, tiers, claim, refs, owners)",
    "UPDATE bindings SET digest = seal('binding', id, window_id, session_id, salt_hash, created_at)",
    "UPDATE sessions SET digest = seal('session', session_id, model, token_count, event, created_at, updated_at)",
    """
    UPDATE snapshots SET digest = seal(
        'snapshot', id, restorable_tokens, block_count, own_bytes, windows, passport, tokens_digest, chunks_digest
    )
    """,
    """
    UPDATE totals SET digest = seal(
        'totals', windows, referenced_bytes, chunks, size_bytes, disk_chunks, disk_bytes, redis_chunks, redis_bytes
    )
    """,
)


def seal_everything(db: sqlite3.Connection) -> None:
    """Seal all rows, inside the transaction of the second step."""
    db.create_function("seal", -1, seal)
    for (snapshot,) in db.execute("SELECT id FROM snapshots").fetchall():
        (token_ids,) = db.execute("SELECT token_ids FROM snapshot_tokens WHERE snapshot_id = ?", (snapshot,)).fetchone()
        keys = db.execute(
            """
            SELECT c.key FROM snapshot_chunks h JOIN chunks c ON c.id = h.chunk_id
            WHERE h.snapshot_id = ? ORDER BY h.position
            """,
            (snapshot,),
        )
        digests = (seal_bytes(token_ids), seal_bytes(b"".join(key for (key,) in keys)))
        db.execute("UPDATE snapshots SET tokens_digest = ?, chunks_digest = ? WHERE id = ?", (*digests, snapshot))
    for statement in _SEALED:
        db.execute(statement)
    for fields, tags in _windows(db):
        db.execute("UPDATE windows SET digest = ? WHERE id = ?", (seal("window", *fields, *tags), fields[0]))
    db.create_function("seal", -1, None)


def seal_private(db: sqlite3.Connection) -> None:
    """Let the checksums of the windows cover `private`, inside the transaction of the third step.

    A window whose checksum is wrong keeps it, so that its damage stays known.
    """
    for fields, tags in _windows(db):
        before = seal("window", *fields, *tags)
        after = seal("window", *fields, 0, *tags)
        db.execute("UPDATE windows SET digest = ? WHERE id = ? AND digest = ?", (after, fields[0], before))


def seal_origins(db: sqlite3.Connection) -> None:
    """Let the checksums of the snapshots cover `origin`, inside the transaction of the eighth step.

    A snapshot whose checksum is wrong keeps it, so that its damage stays known.
    """
    rows = db.execute(
        """
        SELECT id, restorable_tokens, block_count, own_bytes, windows, passport, tokens_digest, chunks_digest
        FROM snapshots
        """
    )
    for fields in rows.fetchall():
        before, after = seal("snapshot", *fields), seal("snapshot", *fields, "")
        db.execute("UPDATE snapshots SET digest = ? WHERE id = ? AND digest = ?", (after, fields[0], before))


def _windows(db: sqlite3.Connection) -> Iterator[tuple[tuple[Any, ...], list[str]]]:
    """Yield the fields of each window as they were at the second step, and its tags."""
    windows = db.execute(
        """
        SELECT id, name, snapshot_id, description, session_id, head, parent, cloned, model, token_count, size_bytes,
            created_at, updated_at, thawed_at
        FROM windows
        """
    )
    for fields in windows.fetchall():
        tags = db.execute("SELECT tag FROM window_tags WHERE window_id = ? ORDER BY position", fields[:1])
        yield fields, [tag for (tag,) in tags]
