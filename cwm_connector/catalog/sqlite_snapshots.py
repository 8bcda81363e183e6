"""Snapshots and the chunks they hold: the part of the embedded catalog that counts references.

Every function runs inside its caller's write transaction; `sqlite_schema.py` says what it keeps true.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cwm_connector.catalog.base import (
    ChunkRow,
    DeletedWindow,
    NewWindow,
)
from cwm_connector.protocol import Code, CWMError
from cwm_connector.terms import ChunkKey

TOKEN_BYTES = 4
"""Token ids are little-endian int32."""

_HELD = "SELECT chunk_id FROM snapshot_chunks WHERE snapshot_id = :snapshot"
_OWNERS_OF_LAST_REFERENCES = f"""
    SELECT owners, sum(size_bytes) FROM chunks WHERE id IN ({_HELD}) AND refs = 1 GROUP BY owners
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    id: int
    token_count: int
    size_bytes: int


def row_id(inserted: sqlite3.Cursor) -> int:
    """The id of the row that the cursor's INSERT made."""
    assert inserted.lastrowid is not None  # None only before the first INSERT
    return inserted.lastrowid


def add_snapshot(db: sqlite3.Connection, new: NewWindow) -> Snapshot:
    """Writes the rows of `new.stored` and a snapshot that refers to `new.chunks`.

    Raises: CWM-2003 if a chunk is neither stored nor in `new.stored`; CWM-9001 for what no freeze can mean: a chunk
    twice in one chain, or a piece of a token id.
    """
    if len(new.token_ids) % TOKEN_BYTES or len(set(new.chunks)) != len(new.chunks):
        raise CWMError(
            Code.INTERNAL, f"the freeze of {new.name!r} lists a chunk twice or cuts a token id; report this as a bug"
        )
    # A chunk that another freeze has stored in the meantime is the same chunk: same key, same content.
    db.executemany(
        "INSERT INTO chunks (key, tokens, size_bytes) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
        ((row.key, row.tokens, row.size_bytes) for row in new.stored),
    )
    passport = json.dumps(dict(new.passport), sort_keys=True)
    snapshot = row_id(
        db.execute(
            "INSERT INTO snapshots (restorable_tokens, block_count, passport) VALUES (?, ?, ?)",
            (new.restorable_tokens, len(new.chunks), passport),
        )
    )
    db.execute("INSERT INTO snapshot_tokens (snapshot_id, token_ids) VALUES (?, ?)", (snapshot, new.token_ids))
    return Snapshot(snapshot, len(new.token_ids) // TOKEN_BYTES, _hold(db, snapshot, new.chunks))


def _hold(db: sqlite3.Connection, snapshot: int, keys: Sequence[ChunkKey]) -> int:
    """Refers to the chunks; returns the size in bytes of all of them."""
    db.executemany(
        "INSERT INTO snapshot_chunks (snapshot_id, position, chunk_id) SELECT ?, ?, id FROM chunks WHERE key = ?",
        ((snapshot, position, key) for position, key in enumerate(keys)),
    )
    (held,) = db.execute("SELECT count(*) FROM snapshot_chunks WHERE snapshot_id = ?", (snapshot,)).fetchone()
    if held != len(keys):
        raise CWMError(
            Code.CHUNK_MISSING,
            f"{len(keys) - held} of {len(keys)} chunks are not stored; freeze the session again",
            missing=len(keys) - held,
        )
    this = {"snapshot": snapshot}
    losses = db.execute(_OWNERS_OF_LAST_REFERENCES, this).fetchall()
    db.executemany("UPDATE snapshots SET own_bytes = own_bytes - ?2 WHERE id = ?1", losses)
    db.execute(f"UPDATE chunks SET refs = refs + 1, owners = owners + :snapshot WHERE id IN ({_HELD})", this)
    size, own = db.execute(
        f"""
        SELECT ifnull(sum(size_bytes), 0), ifnull(sum(iif(refs = 1, size_bytes, 0)), 0)
        FROM chunks WHERE id IN ({_HELD})
        """,
        this,
    ).fetchone()
    db.execute("UPDATE snapshots SET own_bytes = ? WHERE id = ?", (own, snapshot))
    return int(size)


def drop_snapshot(db: sqlite3.Connection, snapshot: int, keep: Iterable[ChunkKey]) -> DeletedWindow:
    """Removes a snapshot that no window shows any more, and the chunks that it alone held, but for `keep`."""
    chunks = chunks_of_snapshot(db, snapshot)
    kept = frozenset(keep)
    this = {"snapshot": snapshot}
    db.execute(f"UPDATE chunks SET refs = refs - 1, owners = owners - :snapshot WHERE id IN ({_HELD})", this)
    gains = db.execute(_OWNERS_OF_LAST_REFERENCES, this).fetchall()
    db.executemany("UPDATE snapshots SET own_bytes = own_bytes + ?2 WHERE id = ?1", gains)
    unreferenced = {key for (key,) in db.execute(f"SELECT key FROM chunks WHERE id IN ({_HELD}) AND refs = 0", this)}
    db.execute("DELETE FROM snapshots WHERE id = :snapshot", this)
    orphans = tuple(chunk for chunk in chunks if chunk.key in unreferenced and chunk.key not in kept)
    delete_chunks(db, orphans)
    return DeletedWindow(orphans, shared=len(chunks) - len(unreferenced))


def delete_chunks(db: sqlite3.Connection, chunks: Iterable[ChunkRow]) -> None:
    db.executemany("DELETE FROM chunks WHERE key = ?", ((chunk.key,) for chunk in chunks))


def chunks_of_snapshot(db: sqlite3.Connection, snapshot: int) -> tuple[ChunkRow, ...]:
    """In the order of the tokens."""
    rows = db.execute(
        """
        SELECT c.key, c.tokens, c.size_bytes FROM snapshot_chunks h JOIN chunks c ON c.id = h.chunk_id
        WHERE h.snapshot_id = ? ORDER BY h.position
        """,
        (snapshot,),
    )
    return tuple(ChunkRow(ChunkKey(key), tokens, size) for key, tokens, size in rows)
