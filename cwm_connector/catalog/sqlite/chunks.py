"""The chunk rows of the embedded catalog: read and check, seal and write them.

Every function runs inside the caller's transaction.
"""

import functools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from cwm_connector.catalog.base import ChunkRow, OpenWindows
from cwm_connector.catalog.sqlite.rows import damaged, seal
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Claim, Micros, TierName

_FIELDS: Final = "id, key, tokens, size_bytes, tiers, claim, refs, owners, digest"
_INSERT: Final = f"INSERT INTO chunks ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_CHANGE_TIERS: Final = "UPDATE chunks SET tiers = ?, refs = ?, owners = ?, digest = ? WHERE id = ?"
_CHANGE_COUNTERS: Final = "UPDATE chunks SET refs = ?, owners = ?, digest = ? WHERE id = ?"
"""A statement of its own, because each change of `tiers` runs a trigger."""
_KEYS_PER_STATEMENT: Final = 128
"""Keys that one statement looks up. A statement costs as much as the look-up of several keys."""
_USES: Final = f"""
    SELECT {_FIELDS}, ifnull((
        SELECT max(max(w.created_at, ifnull(w.thawed_at, 0)))
        FROM snapshot_chunks h JOIN windows w ON w.snapshot_id = h.snapshot_id WHERE h.chunk_id = chunks.id
    ), 0)
    FROM chunks WHERE key > ? ORDER BY key LIMIT ?
"""
_BEGINNINGS: Final = """
    SELECT c.key, c.tokens FROM snapshots s
        JOIN snapshot_chunks h ON h.snapshot_id = s.id AND h.position = 0 JOIN chunks c ON c.id = h.chunk_id
    WHERE EXISTS (SELECT 1 FROM windows w WHERE w.snapshot_id = s.id AND w.private = 0)
"""
_FIRST: Final = """
    SELECT c.key, c.tokens FROM snapshot_chunks h JOIN chunks c ON c.id = h.chunk_id
    WHERE h.snapshot_id = ? AND h.position = 0
"""
_HELD_BY_MANY: Final = 1024
"""Snapshots that hold a chunk, as one with the system prompt of an agent. Then the newest windows are looked at."""
NEWEST: Final = 1024
"""So many of them. A window that is not among them is not found by a chunk that is held by many."""
_FITS: Final = """
    w.private = 0 AND w.created_at > :after AND (:max_chunks IS NULL OR s.block_count <= :max_chunks)
"""
_HOLDS: Final = "EXISTS (SELECT 1 FROM snapshot_chunks h WHERE h.chunk_id = :chunk AND h.snapshot_id = w.snapshot_id)"
_BY_CHUNK: Final = f"""
    FROM snapshot_chunks h CROSS JOIN snapshots s ON s.id = h.snapshot_id
        CROSS JOIN windows w ON w.snapshot_id = h.snapshot_id
    WHERE h.chunk_id = :chunk AND {_FITS}
"""
_OF_SESSION: Final = f"""
    FROM windows w INDEXED BY windows_by_session CROSS JOIN snapshots s ON s.id = w.snapshot_id
    WHERE w.session_id = :session_id AND {_FITS} AND {_HOLDS}
"""
_AMONG_NEWEST: Final = f"""
    FROM (SELECT * FROM windows INDEXED BY windows_by_created_at ORDER BY created_at DESC, id DESC LIMIT {NEWEST}) w
        CROSS JOIN snapshots s ON s.id = w.snapshot_id
    WHERE {_FITS} AND {_HOLDS}
"""


@functools.cache
def tiers_of(mask: int) -> frozenset[TierName]:
    """Return the tiers that a row's `tiers` stands for. Raises: `Code.CORRUPT` for a tier that this version lacks."""
    tiers = frozenset(tier for tier in TierName if mask & tier.catalog_bit)
    if mask_of(tiers) != mask:
        raise CWMError(Code.CORRUPT, "the catalog names a tier that this version does not know; update CWM")
    return tiers


@functools.cache
def mask_of(tiers: frozenset[TierName]) -> int:
    """Return what a row's `tiers` says for them. Raises: `Code.INTERNAL` for a tier that is not durable."""
    if not all(tier.is_durable for tier in tiers):
        raise CWMError(Code.INTERNAL, "a chunk can't be recorded in memory; report this as a bug")
    return sum(tier.catalog_bit for tier in tiers)


class ChunkEntry(NamedTuple):
    """A chunk row with the fields that only the catalog uses. `schema.py` says what the counters count."""

    id: int
    chunk: ChunkRow
    refs: int
    owners: int

    def with_tiers(self, tiers: frozenset[TierName]) -> "ChunkEntry":
        """Return the entry with other tiers."""
        return self._replace(chunk=replace(self.chunk, tiers=tiers))


def checked(fields: Sequence[Any], **context: Any) -> ChunkEntry:
    """Return the entry with these fields, the last of which is `digest`. Raises `Code.CORRUPT` with the `context`."""
    if seal("chunk", *fields[:-1]) != fields[-1]:
        raise damaged(f"chunk {bytes(fields[1]).hex() if isinstance(fields[1], bytes) else '?'}", **context)
    row_id, key, tokens, size_bytes, tiers, claim, refs, owners, _ = fields
    chunk = ChunkRow(ChunkKey(key), tokens, size_bytes, tiers_of(tiers), Claim(claim))
    return ChunkEntry(row_id, chunk, refs, owners)


def chunks_where(db: sqlite3.Connection, condition: str = "", values: Sequence[object] = ()) -> tuple[ChunkRow, ...]:
    """Return the chunk rows that a condition selects. `condition` is the SQL from WHERE or ORDER BY on."""
    rows = db.execute(f"SELECT {_FIELDS} FROM chunks {condition}", values)
    return tuple(checked(fields).chunk for fields in rows)


def chunk_entries(db: sqlite3.Connection, keys: Iterable[ChunkKey]) -> dict[ChunkKey, ChunkEntry]:
    """Return the entries of those `keys` that have one, in no particular order."""
    found = {}
    asked = list(keys)
    for begin in range(0, len(asked), _KEYS_PER_STATEMENT):
        some = asked[begin : begin + _KEYS_PER_STATEMENT]
        for fields in db.execute(_lookup_of(len(some)), some):
            found[ChunkKey(fields[1])] = checked(fields)
    return found


def chunks_of_snapshot(db: sqlite3.Connection, snapshot: int, **context: Any) -> Iterator[ChunkEntry]:
    """Return the entries of a snapshot in the order of the tokens.

    Only the snapshot's own checksum shows whether they are complete.
    """
    rows = db.execute(
        f"""
        SELECT {_FIELDS} FROM snapshot_chunks JOIN chunks ON id = chunk_id
        WHERE snapshot_id = ? ORDER BY position
        """,
        (snapshot,),
    )
    return (checked(fields, **context) for fields in rows)


def next_id(db: sqlite3.Connection, table: str) -> int:
    """Return the id that SQLite would choose for the next row. It has to be known because the checksum covers it."""
    (last,) = db.execute(f"SELECT max(id) FROM {table}").fetchone()
    return int(last or 0) + 1


def with_stored(
    db: sqlite3.Connection, before: Mapping[ChunkKey, ChunkEntry], stored: Iterable[ChunkRow]
) -> dict[ChunkKey, ChunkEntry]:
    """Return the entries `before` with the chunks that a freeze stored.

    A new chunk gets an entry without references. A known chunk gains the new tiers.
    """
    after = dict(before)
    following = next_id(db, "chunks")
    for chunk in stored:
        known = after.get(chunk.key)
        if known is None:
            after[chunk.key] = ChunkEntry(following, chunk, refs=0, owners=0)
            following += 1
        else:
            after[chunk.key] = known.with_tiers(known.chunk.tiers | chunk.tiers)
    return after


def place(db: sqlite3.Connection, tier: TierName, came: Sequence[ChunkKey], went: Sequence[ChunkKey]) -> None:
    """Record that `tier` now holds `came` and no longer holds `went`.

    A key in both counts as gone. Keys without a row are ignored.
    """
    before = chunk_entries(db, dict.fromkeys([*came, *went]))
    gone = frozenset(went)
    after = []
    for key, entry in before.items():
        tiers = entry.chunk.tiers - {tier} if key in gone else entry.chunk.tiers | {tier}
        after.append(entry.with_tiers(tiers))
    write_chunks(db, before, after)


def write_chunks(db: sqlite3.Connection, before: Mapping[ChunkKey, ChunkEntry], after: Iterable[ChunkEntry]) -> None:
    """Write the entries `after`. `before` has the entries as they were read in this transaction."""
    new, placed, counted = [], [], []
    for entry in after:
        known = before.get(entry.chunk.key)
        if known is None:
            new.append(_sealed(entry))
        elif entry.chunk.tiers != known.chunk.tiers:
            _, _, _, _, tiers, _, *counters = _sealed(entry)
            placed.append((tiers, *counters, entry.id))
        elif entry != known:
            counted.append((*_sealed(entry)[6:], entry.id))
    db.executemany(_INSERT, new)
    db.executemany(_CHANGE_TIERS, placed)
    db.executemany(_CHANGE_COUNTERS, counted)


def delete_chunks(db: sqlite3.Connection, keys: Iterable[ChunkKey]) -> None:
    """Delete the rows of these chunks."""
    db.executemany("DELETE FROM chunks WHERE key = ?", ((key,) for key in keys))


def uses_after(db: sqlite3.Connection, last: ChunkKey | None, limit: int) -> tuple[tuple[ChunkRow, Micros], ...]:
    """Return the next rows after `last` by key, with the time of the last use, 0 if no window holds the chunk."""
    return tuple((checked(fields[:-1]).chunk, Micros(fields[-1])) for fields in db.execute(_USES, (last or b"", limit)))


def windows_with(db: sqlite3.Connection, key: ChunkKey) -> tuple[str, ...]:
    """Return the names of the windows that hold the chunk, in the order of their commits."""
    rows = db.execute(
        """
        SELECT w.name FROM chunks c JOIN snapshot_chunks h ON h.chunk_id = c.id
            JOIN windows w ON w.snapshot_id = h.snapshot_id
        WHERE c.key = ? ORDER BY w.id
        """,
        (key,),
    )
    return tuple(name for (name,) in rows)


def open_beginnings(db: sqlite3.Connection) -> list[tuple[ChunkKey, int]]:
    """Return the first chunks of the windows that are not private, each with its number of tokens."""
    return [(ChunkKey(key), tokens) for key, tokens in db.execute(_BEGINNINGS)]


def first_chunk(db: sqlite3.Connection, snapshot: int) -> tuple[ChunkKey, int]:
    """Return the first chunk of a snapshot and its number of tokens."""
    key, tokens = db.execute(_FIRST, (snapshot,)).fetchone()
    return ChunkKey(key), tokens


def is_open(db: sqlite3.Connection, key: ChunkKey, windows: OpenWindows) -> bool:
    """Return whether one of `windows` holds the chunk."""
    return bool(open_windows_with(db, key, windows, 1, newest_first=False))


def open_windows_with(
    db: sqlite3.Connection, key: ChunkKey, windows: OpenWindows, limit: int, *, newest_first: bool = True
) -> tuple[str, ...]:
    """Return the names of those of `windows` that hold the chunk, the newest first, at most `limit`.

    The rows are not checked. A damaged row can only lead to a window that does not fit, and its checksum is checked
    when the window itself is read.
    """
    found = db.execute("SELECT id, refs FROM chunks WHERE key = ?", (key,)).fetchone()
    if found is None:
        return ()
    chunk, refs = found
    by_chunk = _AMONG_NEWEST if refs > _HELD_BY_MANY else _BY_CHUNK
    source = by_chunk if windows.session_id is None else _OF_SESSION
    order = "ORDER BY w.created_at DESC, w.id DESC" if newest_first else ""
    rows = db.execute(
        f"SELECT w.name {source} {order} LIMIT :limit",
        {
            "chunk": chunk,
            "after": windows.after,
            "session_id": windows.session_id,
            "max_chunks": windows.max_chunks,
            "limit": limit,
        },
    )
    return tuple(name for (name,) in rows)


def _lookup_of(keys: int) -> str:
    """Return the SQL that looks up so many keys.

    It returns the key that was asked for, because a damaged index can lead to the undamaged row of another chunk. The
    checksum then fails.
    """
    asked = ", ".join(["(?)"] * keys)
    fields = _FIELDS.replace("key", "asked.key")
    return f"WITH asked (key) AS (VALUES {asked}) SELECT {fields} FROM asked CROSS JOIN chunks USING (key)"


def _sealed(entry: ChunkEntry) -> tuple[Any, ...]:
    """Return all fields, the checksum last. Raises `Code.INTERNAL` for CPU memory, which is not durable."""
    chunk = entry.chunk
    tiers = mask_of(chunk.tiers)
    fields = (entry.id, chunk.key, chunk.tokens, chunk.size_bytes, tiers, chunk.claim, entry.refs, entry.owners)
    return (*fields, seal("chunk", *fields))
