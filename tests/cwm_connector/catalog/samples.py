"""Windows whose content follows from a few names, so that any process can check whether one is complete."""

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from cwm_connector.catalog.base import (
    Catalog,
    CatalogTotals,
    ChunkRow,
    NewWindow,
    TierTotals,
    WindowQuery,
)
from cwm_connector.core.types import ChunkKey, Micros, TierName

PASSPORT = {"weights": "sha256:1234", "dtype": "bfloat16"}
START = Micros(1_769_160_600_000_000)
"""2026-01-23T09:30:00Z."""
SECOND = 1_000_000


def at(seconds: float) -> Micros:
    return Micros(START + int(seconds * SECOND))


def chunk(name: str, size_bytes: int = 1000, tokens: int = 256) -> ChunkRow:
    return ChunkRow(ChunkKey(hashlib.sha256(name.encode()).digest()), tokens, size_bytes)


def chain(name: str, length: int) -> list[ChunkRow]:
    """Return a chain that begins with the shorter ones of that name. A sum of sizes shows which chunks it has."""
    return [chunk(f"{name}/{n}", size_bytes=1000 + n) for n in range(length)]


def sizes(rows: Sequence[ChunkRow]) -> int:
    return sum(row.size_bytes for row in rows)


def token_ids(name: str, chunks: Sequence[ChunkRow]) -> bytes:
    """Return the ids that the chunks stand for, and five more that differ from window to window."""
    return b"".join(ids_of(row) for row in chunks) + hashlib.shake_128(name.encode()).digest(4 * 5)


def ids_of(row: ChunkRow) -> bytes:
    return hashlib.shake_128(row.key).digest(4 * row.tokens)


def new_window(
    name: str, chunks: Sequence[ChunkRow], stored: Sequence[ChunkRow] | None = None, **changes: Any
) -> NewWindow:
    """Return a window with five tokens after the last chunk. By default its freeze has stored all of `chunks`."""
    restorable = sum(row.tokens for row in chunks)
    fields: dict[str, Any] = {
        "name": name,
        "description": "",
        "tags": [],
        "model": "small",
        "passport": PASSPORT,
        "session_id": "session-1",
        "head": "h1",
        "parent": None,
        "token_ids": token_ids(name, chunks),
        "restorable_tokens": restorable,
        "chunks": [row.key for row in chunks],
        "stored": chunks if stored is None else stored,
        "created_at": START,
    }
    return NewWindow(**{**fields, **changes})


def totals(windows: int, chunks: int, stored_bytes: int, referenced_bytes: int) -> CatalogTotals:
    """Return the totals of a catalog whose chunks are all on disk and nowhere else."""
    tiers = {TierName.DISK: TierTotals(chunks, stored_bytes), TierName.REDIS: TierTotals(0, 0)}
    return CatalogTotals(
        windows=windows, chunks=chunks, stored_bytes=stored_bytes, referenced_bytes=referenced_bytes, tiers=tiers
    )


def content(path: Path) -> dict[str, list[Any]]:
    """Return every row of every table, to check that nothing was changed."""
    with closing(sqlite3.connect(path)) as raw:
        tables = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {name: raw.execute(f"SELECT * FROM {name}").fetchall() for name in tables}


def names(catalog: Catalog) -> set[str]:
    return {row.name for row in catalog.list_windows(WindowQuery(limit=1_000_000)).windows}
