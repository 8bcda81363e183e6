"""Builds a catalog with the rows of many windows of 128k tokens, without the bytes of their KV blocks.

A family is a conversation that is frozen again and again. Its windows continue each other, so each adds a few chunks to
those of the one before. All families begin with the same chunks, as the conversations of one agent begin with the same
system prompt. With one window in each family and no common beginning nothing is shared.

The rows are those that the catalog writes (its integrity check passes), but each is written once, in large
transactions. To write the windows one by one would take hours.
"""

import hashlib
import json
import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.catalog import CHUNK_BYTES, CHUNK_TOKENS, MINUTE, PASSPORT, START, TAGS, WORDS, ids_of
from cwm_connector.catalog.base import ChunkRow
from cwm_connector.catalog.session_pages import SessionEvent
from cwm_connector.catalog.sqlite.chunks import ChunkEntry, write_chunks
from cwm_connector.catalog.sqlite.file import SqliteFile
from cwm_connector.catalog.sqlite.rows import DIGEST_BYTES, seal
from cwm_connector.catalog.sqlite.thaws import remember_session
from cwm_connector.catalog.sqlite.tokens import pack, write_last_tokens
from cwm_connector.catalog.sqlite.totals import counting
from cwm_connector.catalog.sqlite.windows import Window, add_window
from cwm_connector.core.types import ChunkKey, Micros

CHUNKS: Final = 512
"""131,072 tokens."""
FAMILIES_AT_ONCE: Final = 50
_POOL: Final = 512
"""Different chunks of token ids. Only their size matters here."""
_INDEX: Final = "snapshot_chunks_by_chunk"
_COPY: Final = """
    INSERT INTO snapshot_chunks SELECT ?, position, chunk_id FROM snapshot_chunks WHERE snapshot_id = ? AND position < ?
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """The windows of a catalog and what they share."""

    windows: int
    family: int
    """Windows that continue each other."""
    new: int
    """Chunks that each of them adds."""
    common: int
    """Chunks with which all families begin."""

    @property
    def families(self) -> int:
        """Return the number of families."""
        return self.windows // self.family

    def length(self, turn: int) -> int:
        """Return the chunks of a family's window. The last one has `CHUNKS`."""
        return CHUNKS - (self.family - 1 - turn) * self.new

    def key(self, family: int, position: int) -> ChunkKey:
        """Return the key of a chunk."""
        whose = "all" if position < self.common else str(family)
        return ChunkKey(hashlib.sha256(f"{whose}/{position}".encode()).digest())


@dataclass(slots=True)
class _Family:
    """The chunks of a family, and the state of the checksums up to the window that is written next."""

    entries: list[ChunkEntry]
    tokens: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=DIGEST_BYTES))
    keys: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=DIGEST_BYTES))
    covered: int = 0


class Builder:
    """Fills an empty catalog."""

    def __init__(self, file: SqliteFile, shape: Shape) -> None:
        self._file = file
        self._shape = shape
        self._pool = [ids_of(shape.key(-1, number + shape.common)) for number in range(_POOL)]
        self._packed = [pack(ids) for ids in self._pool]
        self._common: list[ChunkEntry] = []
        self._next_chunk = 1

    def build(self) -> None:
        """Write all rows."""
        with self._file.reading() as db:
            (index,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (_INDEX,)).fetchone()
        with self._file.writing() as db:
            db.execute(f"DROP INDEX {_INDEX}")
        for first in range(0, self._shape.families, FAMILIES_AT_ONCE):
            with self._file.writing() as db, counting(db):
                for family in range(first, min(first + FAMILIES_AT_ONCE, self._shape.families)):
                    self._add_family(db, family)
        with self._file.writing() as db, counting(db):
            self._recount_common(db)
            db.execute(index)

    def _add_family(self, db: sqlite3.Connection, family: int) -> None:
        shape = self._shape
        first_window = family * shape.family + 1
        made = _Family([*self._common, *self._new_chunks(db, family, first_window)])
        if not self._common:
            self._common = made.entries[: shape.common]
        for turn in range(shape.family):
            self._add_window(db, made, family, turn)

    def _new_chunks(self, db: sqlite3.Connection, family: int, first_window: int) -> list[ChunkEntry]:
        shape, new = self._shape, []
        for position in range(len(self._common), CHUNKS):
            # The windows that hold the chunk are those from a certain turn on.
            holders = [first_window + turn for turn in range(shape.family) if shape.length(turn) > position]
            row = ChunkRow(shape.key(family, position), CHUNK_TOKENS, CHUNK_BYTES)
            new.append(ChunkEntry(self._next_chunk, row, refs=len(holders), owners=sum(holders)))
            self._next_chunk += 1
        write_chunks(db, {}, new)
        db.executemany(
            "INSERT INTO chunk_tokens (chunk_id, token_ids) VALUES (?, ?)",
            ((entry.id, self._packed[entry.id % _POOL]) for entry in new),
        )
        return new

    def _add_window(self, db: sqlite3.Connection, made: _Family, family: int, turn: int) -> None:
        shape = self._shape
        number, length = family * shape.family + turn + 1, shape.length(turn)
        name = f"window-{family}-{turn}"
        choose = random.Random(name)
        tail = choose.randbytes(400)
        added = made.entries[made.covered : length]
        for entry in added:
            made.tokens.update(self._pool[entry.id % _POOL])
            made.keys.update(entry.chunk.key)
        self._add_snapshot(db, made, number, length, tail)
        if turn:
            db.execute(_COPY, (number, number - 1, made.covered))
        db.executemany(
            "INSERT INTO snapshot_chunks VALUES (?, ?, ?)",
            ((number, made.covered + at, entry.id) for at, entry in enumerate(added)),
        )
        made.covered = length
        created = Micros(START + number * MINUTE)
        window = Window(
            id=number,
            name=name,
            snapshot_id=number,
            description=" ".join(choose.choices(WORDS, k=12)),
            session_id=f"session-{family}",
            head="h1",
            parent=f"window-{family}-{turn - 1}" if turn else None,
            cloned=0,
            model=choose.choice(("small", "large")),
            token_count=length * CHUNK_TOKENS + 100,
            size_bytes=length * CHUNK_BYTES,
            created_at=created,
            updated_at=created,
            thawed_at=None,
            private=0,
        )
        add_window(db, window, [*choose.sample(TAGS, 2), f"project-{choose.randrange(100)}"])
        remember_session(db, window.session_id, window, SessionEvent.FROZEN, created)

    def _add_snapshot(self, db: sqlite3.Connection, made: _Family, number: int, length: int, tail: bytes) -> None:
        tokens = made.tokens.copy()
        tokens.update(tail)
        own = sum(entry.refs == 1 for entry in made.entries[made.covered : length])
        digests = [int.from_bytes(each.digest(), "big", signed=True) for each in (tokens, made.keys)]
        passport = json.dumps(PASSPORT, sort_keys=True)
        fields = (number, length * CHUNK_TOKENS, length, own * CHUNK_BYTES, 1, passport, *digests)
        db.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*fields, seal("snapshot", *fields)))
        write_last_tokens(db, number, tail)

    def _recount_common(self, db: sqlite3.Connection) -> None:
        """Let the common chunks count the windows of all families."""
        windows = self._shape.windows
        refs, owners = windows, windows * (windows + 1) // 2
        before: dict[ChunkKey, ChunkEntry] = {entry.chunk.key: entry for entry in self._common}
        write_chunks(db, before, [entry._replace(refs=refs, owners=owners) for entry in self._common])


def keys_of(shape: Shape, family: int) -> Sequence[ChunkKey]:
    """Return the keys of a family's chunks."""
    return [shape.key(family, position) for position in range(CHUNKS)]
