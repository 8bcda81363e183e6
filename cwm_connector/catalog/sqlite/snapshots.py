"""Snapshots and the chunks they hold: the part of the embedded catalog that counts references.

Every function runs inside its caller's transaction; `schema.py` says what it keeps true.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Final

from cwm_connector.catalog.base import ChunkRow, DeletedWindow, NewWindow
from cwm_connector.catalog.sqlite.chunks import (
    Held,
    chunks_of_snapshot,
    delete_chunks,
    held_chunks,
    next_id,
    with_stored,
    write_chunks,
)
from cwm_connector.catalog.sqlite.rows import damaged_window, seal, seal_bytes
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey

TOKEN_BYTES: Final = 4
"""Token ids are little-endian int32."""

_FIELDS: Final = (
    "id, restorable_tokens, block_count, own_bytes, windows, passport, tokens_digest, chunks_digest, digest"
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row of the table, as it stands there."""

    id: int
    restorable_tokens: int
    block_count: int
    own_bytes: int
    windows: int
    passport: str
    tokens_digest: int
    chunks_digest: int

    def unique_bytes(self) -> int:
        """What of it belongs to one window alone."""
        return self.own_bytes if self.windows == 1 else 0


def read_snapshot(db: sqlite3.Connection, snapshot: int, name: str) -> Snapshot:
    """`name`: of the window in question. Raises: CWM-4004."""
    fields = db.execute(f"SELECT {_FIELDS} FROM snapshots WHERE id = ?", (snapshot,)).fetchone()
    if fields is None or seal("snapshot", *fields[:-1]) != fields[-1]:
        raise damaged_window(name)
    return Snapshot(*fields[:-1])


def read_token_ids(db: sqlite3.Connection, snapshot: Snapshot, name: str) -> bytes:
    """Raises: CWM-4004."""
    row = db.execute("SELECT token_ids FROM snapshot_tokens WHERE snapshot_id = ?", (snapshot.id,)).fetchone()
    if row is None or not isinstance(row[0], bytes) or seal_bytes(row[0]) != snapshot.tokens_digest:
        raise damaged_window(name)
    return row[0]


def read_chunks(db: sqlite3.Connection, snapshot: Snapshot, name: str) -> tuple[Held, ...]:
    """In the order of the tokens. Raises: CWM-4004 if one is missing, too many, in another place or damaged."""
    chunks = tuple(chunks_of_snapshot(db, snapshot.id, window=name))
    if _digest_of(held.chunk.key for held in chunks) != snapshot.chunks_digest:
        raise damaged_window(name)
    return chunks


def add_snapshot(db: sqlite3.Connection, new: NewWindow) -> tuple[Snapshot, int]:
    """Writes the rows of `new.stored` and a snapshot that refers to `new.chunks`; with the size in bytes of those.

    Raises: CWM-2003 if a chunk is neither in `new.stored` nor in a tier; CWM-9001 for what no freeze can mean: a chunk
    twice in one chain, or a piece of a token id.
    """
    if len(new.token_ids) % TOKEN_BYTES or len(set(new.chunks)) != len(new.chunks):
        raise CWMError(
            Code.INTERNAL, f"the freeze of {new.name!r} lists a chunk twice or cuts a token id; report this as a bug"
        )
    fresh = {row.key for row in new.stored}
    # A chunk that another freeze has stored in the meantime is the same chunk: same key, same content.
    before = held_chunks(db, dict.fromkeys([*new.chunks, *fresh]))
    known = with_stored(db, before, new.stored)
    _require_stored(new, known, fresh)
    chunks = [known[key] for key in new.chunks]
    snapshot = Snapshot(
        id=next_id(db, "snapshots"),
        restorable_tokens=new.restorable_tokens,
        block_count=len(chunks),
        own_bytes=sum(held.chunk.size_bytes for held in chunks if held.refs == 0),
        windows=0,
        passport=json.dumps(dict(new.passport), sort_keys=True),
        tokens_digest=seal_bytes(new.token_ids),
        chunks_digest=_digest_of(new.chunks),
    )
    fields = astuple(snapshot)
    db.execute(
        f"INSERT INTO snapshots ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*fields, seal("snapshot", *fields))
    )
    db.execute("INSERT INTO snapshot_tokens (snapshot_id, token_ids) VALUES (?, ?)", (snapshot.id, new.token_ids))
    db.executemany(
        "INSERT INTO snapshot_chunks (snapshot_id, position, chunk_id) VALUES (?, ?, ?)",
        ((snapshot.id, position, held.id) for position, held in enumerate(chunks)),
    )
    losses: defaultdict[int, int] = defaultdict(int)
    for held in chunks:
        if held.refs == 1:
            losses[held.owners] -= held.chunk.size_bytes
        known[held.chunk.key] = held._replace(refs=held.refs + 1, owners=held.owners + snapshot.id)
    write_chunks(db, before, known.values())
    _own(db, losses)
    return snapshot, sum(held.chunk.size_bytes for held in chunks)


def count_windows(db: sqlite3.Connection, snapshot: int, difference: int) -> None:
    """A window over the snapshot came or went."""
    _count(db, snapshot, windows=difference)


def drop_snapshot(db: sqlite3.Connection, snapshot: Snapshot, name: str, keep: Iterable[ChunkKey]) -> DeletedWindow:
    """Removes a snapshot that no window shows any more, and the chunks that it alone held, but for `keep`.

    Raises: CWM-4004 if it can't be trusted what it held: bytes that others need could go.
    """
    chunks = read_chunks(db, snapshot, name)
    kept = frozenset(keep)
    gains: defaultdict[int, int] = defaultdict(int)
    orphans: list[ChunkRow] = []
    after = []
    for held in chunks:
        left = held._replace(refs=held.refs - 1, owners=held.owners - snapshot.id)
        if left.refs == 1:
            gains[left.owners] += held.chunk.size_bytes
        if left.refs == 0 and held.chunk.key not in kept:
            orphans.append(held.chunk)
        else:
            after.append(left)
    write_chunks(db, {held.chunk.key: held for held in chunks}, after)
    db.execute("DELETE FROM snapshots WHERE id = ?", (snapshot.id,))
    delete_chunks(db, [chunk.key for chunk in orphans])
    _own(db, gains)
    return DeletedWindow(tuple(orphans), shared=sum(left.refs > 0 for left in after))


def _require_stored(new: NewWindow, known: Mapping[ChunkKey, Held], fresh: set[ChunkKey]) -> None:
    missing = sum(key not in fresh and (key not in known or not known[key].chunk.tiers) for key in new.chunks)
    if missing:
        raise CWMError(
            Code.CHUNK_MISSING,
            f"{missing} of {len(new.chunks)} chunks are not stored; freeze the session again",
            missing=missing,
        )


def _own(db: sqlite3.Connection, differences: Mapping[int, int]) -> None:
    for snapshot, difference in differences.items():
        _count(db, snapshot, own_bytes=difference)


def _count(db: sqlite3.Connection, snapshot: int, *, own_bytes: int = 0, windows: int = 0) -> None:
    try:
        found = read_snapshot(db, snapshot, "")
    except CWMError:
        # Sealing it anew would hide the damage, refusing would let it stop the work on other windows.
        return
    counted = replace(found, own_bytes=found.own_bytes + own_bytes, windows=found.windows + windows)
    db.execute(
        "UPDATE snapshots SET own_bytes = ?, windows = ?, digest = ? WHERE id = ?",
        (counted.own_bytes, counted.windows, seal("snapshot", *astuple(counted)), snapshot),
    )


def _digest_of(keys: Iterable[ChunkKey]) -> int:
    return seal_bytes(b"".join(keys))
