"""The snapshot rows of the embedded catalog, and the counts of the references from snapshots to chunks.

Every function runs inside the caller's transaction and keeps the invariants that `schema.py` lists.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final

import msgspec

from cwm_connector.catalog.base import ChunkRow, DeletedWindow, NewWindow, Origin
from cwm_connector.catalog.sqlite.chunks import (
    ChunkEntry,
    chunk_entries,
    chunks_of_snapshot,
    delete_chunks,
    next_id,
    with_stored,
    write_chunks,
)
from cwm_connector.catalog.sqlite.rows import damaged_window, seal, seal_bytes
from cwm_connector.catalog.sqlite.tokens import TOKEN_BYTES, cut, read_tokens, write_chunk_tokens, write_last_tokens
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey

_FIELDS: Final = (
    "id, restorable_tokens, block_count, own_bytes, windows, passport, tokens_digest, chunks_digest, origin, digest"
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row of the table."""

    id: int
    restorable_tokens: int
    block_count: int
    own_bytes: int
    windows: int
    passport: str
    tokens_digest: int
    chunks_digest: int
    origin: str
    """JSON, empty if the content was not imported."""

    def imported_from(self) -> Origin | None:
        """Return where the content was imported from, or None."""
        return msgspec.json.decode(self.origin, type=Origin) if self.origin else None

    def values(self) -> tuple[Any, ...]:
        """Return the fields in their order."""
        return _VALUES_OF(self)

    def unique_bytes(self) -> int:
        """Return the bytes that belong to one window alone."""
        return self.own_bytes if self.windows == 1 else 0


_VALUES_OF: Final = attrgetter(*(field.name for field in fields(Snapshot)))


def read_snapshot(db: sqlite3.Connection, snapshot: int, name: str) -> Snapshot:
    """Return the snapshot. Raises `Code.CORRUPT` if it is damaged, with the `name` of the window in question."""
    row = db.execute(f"SELECT {_FIELDS} FROM snapshots WHERE id = ?", (snapshot,)).fetchone()
    if row is None or seal("snapshot", *row[:-1]) != row[-1]:
        raise damaged_window(name)
    return Snapshot(*row[:-1])


def read_token_ids(db: sqlite3.Connection, snapshot: Snapshot, name: str) -> bytes:
    """Return the token ids. Raises `Code.CORRUPT` if they are damaged or missing."""
    token_ids = read_tokens(db, snapshot.id)
    if token_ids is None or seal_bytes(token_ids) != snapshot.tokens_digest:
        raise damaged_window(name)
    return token_ids


def read_chunks(db: sqlite3.Connection, snapshot: Snapshot, name: str) -> tuple[ChunkEntry, ...]:
    """Return the chunk entries of the snapshot, in the order of the tokens.

    Raises `Code.CORRUPT` if one is missing, extra, in another place or damaged.
    """
    chunks = tuple(chunks_of_snapshot(db, snapshot.id, window=name))
    if _digest_of(entry.chunk.key for entry in chunks) != snapshot.chunks_digest:
        raise damaged_window(name)
    return chunks


def add_snapshot(db: sqlite3.Connection, new: NewWindow) -> tuple[Snapshot, int]:
    """Write the rows of `new.stored` and a snapshot that refers to `new.chunks`. Return it and the size of its chunks.

    Raises `Code.CHUNK_MISSING` if a chunk is neither in `new.stored` nor in a tier, `Code.INTERNAL` if a chunk appears
    twice or the last token id is incomplete.
    """
    if len(new.token_ids) % TOKEN_BYTES or len(set(new.chunks)) != len(new.chunks):
        raise CWMError(
            Code.INTERNAL, f"the freeze of {new.name!r} lists a chunk twice or cuts a token id; report this as a bug"
        )
    fresh = {row.key for row in new.stored}
    # Another freeze may have stored a chunk in the meantime. It is the same chunk, because the key covers the content.
    before = chunk_entries(db, dict.fromkeys([*new.chunks, *fresh]))
    known = with_stored(db, before, new.stored)
    _require_stored(new, known, fresh)
    chunks = [known[key] for key in new.chunks]
    snapshot = Snapshot(
        id=next_id(db, "snapshots"),
        restorable_tokens=new.restorable_tokens,
        block_count=len(chunks),
        own_bytes=sum(entry.chunk.size_bytes for entry in chunks if entry.refs == 0),
        windows=0,
        passport=json.dumps(dict(new.passport), sort_keys=True),
        tokens_digest=seal_bytes(new.token_ids),
        chunks_digest=_digest_of(new.chunks),
        origin="" if new.origin is None else msgspec.json.encode(new.origin).decode(),
    )
    values = snapshot.values()
    db.execute(
        f"INSERT INTO snapshots ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, seal("snapshot", *values))
    )
    db.executemany(
        "INSERT INTO snapshot_chunks (snapshot_id, position, chunk_id) VALUES (?, ?, ?)",
        ((snapshot.id, position, entry.id) for position, entry in enumerate(chunks)),
    )
    losses: defaultdict[int, int] = defaultdict(int)
    for entry in chunks:
        if entry.refs == 1:
            losses[entry.owners] -= entry.chunk.size_bytes
        known[entry.chunk.key] = entry._replace(refs=entry.refs + 1, owners=entry.owners + snapshot.id)
    write_chunks(db, before, known.values())
    parts, last = cut(new.token_ids, [entry.chunk.tokens for entry in chunks])
    write_chunk_tokens(db, [(entry.id, part) for entry, part in zip(chunks, parts, strict=True)])
    write_last_tokens(db, snapshot.id, last)
    _change_own_bytes(db, losses)
    return snapshot, sum(entry.chunk.size_bytes for entry in chunks)


def count_windows(db: sqlite3.Connection, snapshot: int, difference: int) -> None:
    """Change the number of windows over the snapshot."""
    _change_counters(db, snapshot, windows=difference)


def release_snapshot(db: sqlite3.Connection, snapshot: int, name: str, keep: Iterable[ChunkKey]) -> DeletedWindow:
    """Count one window less over the snapshot, whose row is gone. Drop the snapshot with its last window."""
    left = "SELECT 1 FROM windows WHERE snapshot_id = ?1 UNION ALL SELECT 1 FROM trash WHERE snapshot_id = ?1"
    if db.execute(left, (snapshot,)).fetchone():
        count_windows(db, snapshot, -1)
        count = db.execute("SELECT count(*) FROM snapshot_chunks WHERE snapshot_id = ?", (snapshot,))
        return DeletedWindow(orphans=(), shared=count.fetchone()[0])
    return _drop_snapshot(db, read_snapshot(db, snapshot, name), name, keep)


def _drop_snapshot(db: sqlite3.Connection, snapshot: Snapshot, name: str, keep: Iterable[ChunkKey]) -> DeletedWindow:
    """Remove a snapshot that has no window left, and the chunks that only it held, except those in `keep`.

    Raises `Code.CORRUPT` if its list of chunks is damaged, because bytes that others need could be removed.
    """
    chunks = read_chunks(db, snapshot, name)
    kept = frozenset(keep)
    gains: defaultdict[int, int] = defaultdict(int)
    orphans: list[ChunkRow] = []
    after = []
    for entry in chunks:
        left = entry._replace(refs=entry.refs - 1, owners=entry.owners - snapshot.id)
        if left.refs == 1:
            gains[left.owners] += entry.chunk.size_bytes
        if left.refs == 0 and entry.chunk.key not in kept:
            orphans.append(entry.chunk)
        else:
            after.append(left)
    write_chunks(db, {entry.chunk.key: entry for entry in chunks}, after)
    db.execute("DELETE FROM snapshots WHERE id = ?", (snapshot.id,))
    delete_chunks(db, [chunk.key for chunk in orphans])
    _change_own_bytes(db, gains)
    return DeletedWindow(tuple(orphans), shared=sum(left.refs > 0 for left in after))


def _require_stored(new: NewWindow, known: Mapping[ChunkKey, ChunkEntry], fresh: set[ChunkKey]) -> None:
    missing = sum(key not in fresh and (key not in known or not known[key].chunk.tiers) for key in new.chunks)
    if missing:
        raise CWMError(
            Code.CHUNK_MISSING,
            f"{missing} of {len(new.chunks)} chunks are not stored; freeze the session again",
            missing=missing,
        )


def _change_own_bytes(db: sqlite3.Connection, differences: Mapping[int, int]) -> None:
    for snapshot, difference in differences.items():
        _change_counters(db, snapshot, own_bytes=difference)


def _change_counters(db: sqlite3.Connection, snapshot: int, *, own_bytes: int = 0, windows: int = 0) -> None:
    try:
        found = read_snapshot(db, snapshot, "")
    except CWMError:
        # A new checksum would hide the damage, and an error would stop the work on other windows.
        return
    counted = replace(found, own_bytes=found.own_bytes + own_bytes, windows=found.windows + windows)
    db.execute(
        "UPDATE snapshots SET own_bytes = ?, windows = ?, digest = ? WHERE id = ?",
        (counted.own_bytes, counted.windows, seal("snapshot", *counted.values()), snapshot),
    )


def _digest_of(keys: Iterable[ChunkKey]) -> int:
    return seal_bytes(b"".join(keys))
