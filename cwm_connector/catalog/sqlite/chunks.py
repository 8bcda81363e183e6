"""Rows of stored chunks in the embedded catalog: read and checked, written and sealed.

Every function runs inside its caller's transaction.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.catalog.sqlite.rows import damaged, seal
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Claim, Micros, TierName

_SETS: Final = {
    0: frozenset[TierName](),
    1: frozenset({TierName.DISK}),
    2: frozenset({TierName.REDIS}),
    3: frozenset({TierName.DISK, TierName.REDIS}),
}
"""What `tiers` says: a bit for each durable tier."""
_MASKS: Final = {tiers: mask for mask, tiers in _SETS.items()}

_FIELDS: Final = "id, key, tokens, size_bytes, tiers, claim, refs, owners, digest"
_INSERT: Final = f"INSERT INTO chunks ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_CHANGE_TIERS: Final = "UPDATE chunks SET tiers = ?, refs = ?, owners = ?, digest = ? WHERE id = ?"
_CHANGE_COUNTERS: Final = "UPDATE chunks SET refs = ?, owners = ?, digest = ? WHERE id = ?"
"""Apart, because each change of `tiers` costs a trigger."""
_AT_ONCE: Final = 128
"""Keys asked for by one statement: each statement costs as much as the look-up of several keys."""
_BY_USE: Final = """
    WITH used AS (
        SELECT snapshot_id, max(max(created_at, ifnull(thawed_at, 0))) AS at FROM windows GROUP BY snapshot_id
    )
    SELECT c.key, ifnull(max(used.at), 0) AS at
    FROM chunks c LEFT JOIN snapshot_chunks h ON h.chunk_id = c.id LEFT JOIN used ON used.snapshot_id = h.snapshot_id
    GROUP BY c.id ORDER BY at, c.id
"""


class Held(NamedTuple):
    """A chunk's row with what only the catalog keeps of it; `schema.py` says what the counters count."""

    id: int
    chunk: ChunkRow
    refs: int
    owners: int

    def with_tiers(self, tiers: frozenset[TierName]) -> "Held":
        return self._replace(chunk=replace(self.chunk, tiers=tiers))


def checked(fields: Sequence[Any], **context: Any) -> Held:
    """The row whose fields these are, `digest` last. Raises: CWM-4004, with `context`."""
    if seal("chunk", *fields[:-1]) != fields[-1]:
        raise damaged(f"chunk {bytes(fields[1]).hex() if isinstance(fields[1], bytes) else '?'}", **context)
    row_id, key, tokens, size_bytes, tiers, claim, refs, owners, _ = fields
    return Held(row_id, ChunkRow(ChunkKey(key), tokens, size_bytes, _SETS[tiers], Claim(claim)), refs, owners)


def chunks_where(db: sqlite3.Connection, condition: str = "", values: Sequence[object] = ()) -> tuple[ChunkRow, ...]:
    """`condition`: the statement's text from WHERE or ORDER BY on."""
    rows = db.execute(f"SELECT {_FIELDS} FROM chunks {condition}", values)
    return tuple(checked(fields).chunk for fields in rows)


def held_chunks(db: sqlite3.Connection, keys: Iterable[ChunkKey]) -> dict[ChunkKey, Held]:
    """Those of `keys` that have a row, in no order."""
    found = {}
    asked = list(keys)
    for begin in range(0, len(asked), _AT_ONCE):
        some = asked[begin : begin + _AT_ONCE]
        for fields in db.execute(_lookup_of(len(some)), some):
            found[ChunkKey(fields[1])] = checked(fields)
    return found


def chunks_of_snapshot(db: sqlite3.Connection, snapshot: int, **context: Any) -> Iterator[Held]:
    """In the order of the tokens; whether they are all of it, only the snapshot's own checksum tells."""
    rows = db.execute(
        f"""
        SELECT {_FIELDS} FROM snapshot_chunks JOIN chunks ON id = chunk_id
        WHERE snapshot_id = ? ORDER BY position
        """,
        (snapshot,),
    )
    return (checked(fields, **context) for fields in rows)


def next_id(db: sqlite3.Connection, table: str) -> int:
    """What SQLite would choose itself; known beforehand because a row's checksum covers its id."""
    (last,) = db.execute(f"SELECT max(id) FROM {table}").fetchone()
    return int(last or 0) + 1


def with_stored(
    db: sqlite3.Connection, before: Mapping[ChunkKey, Held], stored: Iterable[ChunkRow]
) -> dict[ChunkKey, Held]:
    """`before` with what a freeze stored: a new row without references, or the known one with the new tiers besides."""
    after = dict(before)
    following = next_id(db, "chunks")
    for chunk in stored:
        known = after.get(chunk.key)
        if known is None:
            after[chunk.key] = Held(following, chunk, 0, 0)
            following += 1
        else:
            after[chunk.key] = known.with_tiers(known.chunk.tiers | chunk.tiers)
    return after


def place(db: sqlite3.Connection, tier: TierName, came: Sequence[ChunkKey], went: Sequence[ChunkKey]) -> None:
    """A key that came and went counts as gone; keys without a row are ignored."""
    before = held_chunks(db, dict.fromkeys([*came, *went]))
    gone = frozenset(went)
    after = []
    for key, held in before.items():
        tiers = held.chunk.tiers - {tier} if key in gone else held.chunk.tiers | {tier}
        after.append(held.with_tiers(tiers))
    write_chunks(db, before, after)


def write_chunks(db: sqlite3.Connection, before: Mapping[ChunkKey, Held], after: Iterable[Held]) -> None:
    """Brings the rows from `before`, as they were read in this transaction, to `after`."""
    new, placed, counted = [], [], []
    for held in after:
        known = before.get(held.chunk.key)
        if known is None:
            new.append(_sealed(held))
        elif held.chunk.tiers != known.chunk.tiers:
            _, _, _, _, tiers, _, *counters = _sealed(held)
            placed.append((tiers, *counters, held.id))
        elif held != known:
            counted.append((*_sealed(held)[6:], held.id))
    db.executemany(_INSERT, new)
    db.executemany(_CHANGE_TIERS, placed)
    db.executemany(_CHANGE_COUNTERS, counted)


def delete_chunks(db: sqlite3.Connection, keys: Iterable[ChunkKey]) -> None:
    db.executemany("DELETE FROM chunks WHERE key = ?", ((key,) for key in keys))


def by_use(db: sqlite3.Connection) -> tuple[tuple[ChunkKey, Micros], ...]:
    """Every key with its last use, longest ago first; 0 for a chunk that no window holds."""
    return tuple((ChunkKey(key), Micros(at)) for key, at in db.execute(_BY_USE))


def windows_with(db: sqlite3.Connection, key: ChunkKey) -> tuple[str, ...]:
    """The names of the windows that hold the chunk, in the order of their commits."""
    rows = db.execute(
        """
        SELECT w.name FROM chunks c JOIN snapshot_chunks h ON h.chunk_id = c.id
            JOIN windows w ON w.snapshot_id = h.snapshot_id
        WHERE c.key = ? ORDER BY w.id
        """,
        (key,),
    )
    return tuple(name for (name,) in rows)


def _lookup_of(keys: int) -> str:
    """The statement's text. It answers the key asked for: a damaged index can lead to another chunk, which is whole."""
    asked = ", ".join(["(?)"] * keys)
    fields = _FIELDS.replace("key", "asked.key")
    return f"WITH asked (key) AS (VALUES {asked}) SELECT {fields} FROM asked CROSS JOIN chunks USING (key)"


def _sealed(held: Held) -> tuple[Any, ...]:
    """All fields, the checksum last. Raises: CWM-9001 for memory, which no row can promise."""
    chunk = held.chunk
    tiers = _MASKS.get(chunk.tiers)
    if tiers is None:
        raise CWMError(Code.INTERNAL, "a chunk can't be recorded in memory; report this as a bug")
    fields = (held.id, chunk.key, chunk.tokens, chunk.size_bytes, tiers, chunk.claim, held.refs, held.owners)
    return (*fields, seal("chunk", *fields))
