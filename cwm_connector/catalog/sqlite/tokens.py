"""The token ids of the embedded catalog: once for each chunk, and for each snapshot those after its last chunk.

Windows that continue each other share all but their newest chunks, so they share the ids as well. An id takes as many
bytes as the largest one of its chunk needs: two for a vocabulary of 65,536 ids, three for a larger one. The first byte
of a packed value is this number.

A row of `chunk_tokens` is written with the first snapshot that refers to the chunk, and goes with the chunk's row. It
has no checksum of its own, because that of the snapshot covers all ids of the window. Functions that take a connection
run inside the caller's transaction.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from cwm_connector.catalog.sqlite.rows import seal_bytes

TOKEN_BYTES: Final = 4
"""Bytes of a token id, a little-endian int32."""
_KEYS_PER_STATEMENT: Final = 128


def pack(token_ids: bytes) -> bytes:
    """Return the ids without the upper bytes that are 0 in all of them."""
    count = len(token_ids) // TOKEN_BYTES
    width = TOKEN_BYTES
    while width > 1 and token_ids[width - 1 :: TOKEN_BYTES].count(0) == count:
        width -= 1
    packed = bytearray(1 + width * count)
    packed[0] = width
    for at in range(width):
        packed[1 + at :: width] = token_ids[at::TOKEN_BYTES]
    return bytes(packed)


def unpack(values: Iterable[bytes]) -> bytes:
    """Return the ids of packed values, one after the other. Raises ValueError for what `pack` does not return."""
    runs: list[tuple[int, list[bytes]]] = []
    for value in values:
        width = value[0] if value else 0
        if not 1 <= width <= TOKEN_BYTES or (len(value) - 1) % width:
            raise ValueError("packed token ids have a wrong length")
        if not runs or runs[-1][0] != width:
            runs.append((width, []))
        runs[-1][1].append(value[1:])
    return b"".join(_widened(b"".join(parts), width) for width, parts in runs)


def cut(token_ids: bytes, chunk_tokens: Sequence[int]) -> tuple[list[bytes], bytes]:
    """Return the ids of each chunk, given the number of tokens in each, and the ids after the last chunk."""
    parts, begin = [], 0
    for count in chunk_tokens:
        parts.append(token_ids[begin : begin + count * TOKEN_BYTES])
        begin += count * TOKEN_BYTES
    return parts, token_ids[begin:]


def write_chunk_tokens(db: sqlite3.Connection, chunks: Sequence[tuple[int, bytes]]) -> None:
    """Write the ids of these chunks, each with its row's id, unless they are there already.

    Ids that differ are replaced. A chunk's key covers its ids, so what differs is damaged, and a freeze that has the
    right ones repairs it.
    """
    packed = {chunk: pack(token_ids) for chunk, token_ids in chunks}
    for chunk, value in _read(db, list(packed)):
        if value == packed[chunk]:
            del packed[chunk]
    db.executemany("INSERT OR REPLACE INTO chunk_tokens (chunk_id, token_ids) VALUES (?, ?)", packed.items())


def write_last_tokens(db: sqlite3.Connection, snapshot: int, token_ids: bytes) -> None:
    """Write the ids after the last chunk of a new snapshot."""
    db.execute("INSERT INTO snapshot_tokens (snapshot_id, token_ids) VALUES (?, ?)", (snapshot, token_ids))


def read_tokens(db: sqlite3.Connection, snapshot: int) -> bytes | None:
    """Return all ids of a snapshot, or None if some are missing. Only the snapshot's checksum shows if they are right.

    The ids of chunks without a row are left out, which that checksum shows as well.
    """
    last = db.execute("SELECT token_ids FROM snapshot_tokens WHERE snapshot_id = ?", (snapshot,)).fetchone()
    packed = db.execute(
        "SELECT t.token_ids FROM snapshot_chunks h JOIN chunk_tokens t ON t.chunk_id = h.chunk_id "
        "WHERE h.snapshot_id = ? ORDER BY h.position",
        (snapshot,),
    )
    try:
        return None if last is None else unpack(value for (value,) in packed) + last[0]
    except (TypeError, ValueError):
        return None


def split_by_chunk(db: sqlite3.Connection) -> None:
    """Move the ids of all snapshots to their chunks, as the fourth step of the schema.

    The ids of a snapshot that fails its checksum stay where they are, so that its damage stays known.
    """
    for snapshot, digest in db.execute("SELECT id, tokens_digest FROM snapshots ORDER BY id").fetchall():
        row = db.execute("SELECT token_ids FROM snapshot_tokens WHERE snapshot_id = ?", (snapshot,)).fetchone()
        if row is None or not isinstance(row[0], bytes) or seal_bytes(row[0]) != digest:
            continue
        chunks = db.execute(
            "SELECT c.id, c.tokens FROM snapshot_chunks h JOIN chunks c ON c.id = h.chunk_id "
            "WHERE h.snapshot_id = ? ORDER BY h.position",
            (snapshot,),
        ).fetchall()
        parts, last = cut(row[0], [tokens for _, tokens in chunks])
        write_chunk_tokens(db, [(chunk, part) for (chunk, _), part in zip(chunks, parts, strict=True)])
        db.execute("UPDATE snapshot_tokens SET token_ids = ? WHERE snapshot_id = ?", (last, snapshot))


def _read(db: sqlite3.Connection, chunks: Sequence[int]) -> Iterable[tuple[int, bytes]]:
    for begin in range(0, len(chunks), _KEYS_PER_STATEMENT):
        some = chunks[begin : begin + _KEYS_PER_STATEMENT]
        asked = ", ".join("?" * len(some))
        yield from db.execute(f"SELECT chunk_id, token_ids FROM chunk_tokens WHERE chunk_id IN ({asked})", some)


def _widened(packed: bytes, width: int) -> bytes:
    token_ids = bytearray(len(packed) // width * TOKEN_BYTES)
    for at in range(width):
        token_ids[at::TOKEN_BYTES] = packed[at::width]
    return bytes(token_ids)
