"""Check an embedded catalog: the structure of the file, and everything that is counted or stored twice.

The functions run inside the caller's transaction and change nothing. They read the whole file, which takes seconds if
it is large. A start checks the structure for at most `LIMIT_S`, which is enough for some 100 MiB. The rest of a larger
file is checked by a `StructureCheck` on a thread and a connection of its own, so that the catalog thread goes on.
"""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Final

from cwm_connector.catalog.session_pages import SessionQuery
from cwm_connector.catalog.sqlite.chunks import chunks_where
from cwm_connector.catalog.sqlite.notes import read_note
from cwm_connector.catalog.sqlite.rows import damaged_window, seal
from cwm_connector.catalog.sqlite.snapshots import read_chunks, read_snapshot, read_token_ids
from cwm_connector.catalog.sqlite.thaws import all_bindings, read_proof, session_page
from cwm_connector.catalog.sqlite.totals import read_totals
from cwm_connector.catalog.sqlite.windows import read_text, read_window
from cwm_connector.catalog.trash.sqlite import check_trash
from cwm_connector.core.errors import CWMError

LIMIT_S: Final = 0.25
_WAITS_FOR_LOCK_S: Final = 5.0

_COUNTED: dict[str, str] = {
    "a window lists a chunk that is not stored": """
        SELECT count(*) FROM snapshot_chunks h LEFT JOIN chunks c ON c.id = h.chunk_id WHERE c.id IS NULL
    """,
    "a chunk's references are miscounted": """
        SELECT count(*) FROM chunks c LEFT JOIN (
            SELECT chunk_id, count(*) AS refs, sum(snapshot_id) AS owners FROM snapshot_chunks GROUP BY chunk_id
        ) h ON h.chunk_id = c.id
        WHERE c.refs != ifnull(h.refs, 0) OR c.owners != ifnull(h.owners, 0)
    """,
    "the chunks' totals are miscounted": """
        SELECT count(*) FROM totals, (
            SELECT count(*) AS n, ifnull(sum(size_bytes), 0) AS size,
                ifnull(sum(tiers & 1), 0) AS disk_n, ifnull(sum((tiers & 1) * size_bytes), 0) AS disk_size,
                ifnull(sum(tiers >> 1 & 1), 0) AS redis_n, ifnull(sum((tiers >> 1 & 1) * size_bytes), 0) AS redis_size
            FROM chunks
        ) WHERE (chunks, size_bytes, disk_chunks, disk_bytes, redis_chunks, redis_bytes)
            != (n, size, disk_n, disk_size, redis_n, redis_size)
    """,
    "a snapshot's windows are miscounted, or it has none": """
        SELECT count(*) FROM snapshots s
        WHERE s.windows = 0 OR s.windows != (SELECT count(*) FROM windows w WHERE w.snapshot_id = s.id)
            + (SELECT count(*) FROM trash t WHERE t.snapshot_id = s.id)
    """,
    "a snapshot's chunks or sizes are miscounted": """
        SELECT count(*) FROM snapshots s LEFT JOIN (
            SELECT h.snapshot_id AS id, count(*) AS blocks, max(h.position) + 1 AS positions, sum(c.size_bytes) AS size,
                sum(iif(c.refs = 1, c.size_bytes, 0)) AS own
            FROM snapshot_chunks h JOIN chunks c ON c.id = h.chunk_id GROUP BY h.snapshot_id
        ) found ON found.id = s.id JOIN (
            SELECT snapshot_id, size_bytes FROM windows UNION ALL SELECT snapshot_id, size_bytes FROM trash
        ) w ON w.snapshot_id = s.id
        WHERE s.block_count != ifnull(found.blocks, 0) OR s.block_count != ifnull(found.positions, 0)
            OR w.size_bytes != ifnull(found.size, 0) OR s.own_bytes != ifnull(found.own, 0)
    """,
    "the windows' totals are miscounted": """
        SELECT count(*) FROM totals WHERE windows != (SELECT count(*) FROM windows)
            OR referenced_bytes != (SELECT ifnull(sum(size_bytes), 0) FROM windows)
                + (SELECT ifnull(sum(size_bytes), 0) FROM trash)
    """,
    "a window's token ids are missing or cut short": """
        SELECT count(*) FROM windows w LEFT JOIN snapshot_tokens t ON t.snapshot_id = w.snapshot_id LEFT JOIN (
            SELECT h.snapshot_id AS id, sum(c.tokens) AS tokens
            FROM snapshot_chunks h JOIN chunks c ON c.id = h.chunk_id GROUP BY h.snapshot_id
        ) held ON held.id = w.snapshot_id
        WHERE length(t.token_ids) IS NOT 4 * (w.token_count - ifnull(held.tokens, 0))
    """,
    "a chunk's token ids are missing": """
        SELECT count(*) FROM snapshot_chunks h LEFT JOIN chunk_tokens t ON t.chunk_id = h.chunk_id
        WHERE t.chunk_id IS NULL
    """,
}


def definitions(db: sqlite3.Connection) -> int:
    """Return the checksum of the definitions of all tables, indexes and triggers."""
    # ANALYZE adds tables of SQLite's own, which do not change any result.
    rows = db.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%' ORDER BY name"
    )
    return seal("definitions", *rows)


class Unfinished(Exception):
    """Raised if the check takes longer than it may."""


def structural_damage(db: sqlite3.Connection, limit_s: float | None = None) -> str | None:
    """Return what is wrong with the pages of the file, or between a table and its indexes, or None.

    Raises `Unfinished` after `limit_s`.
    """
    if limit_s is None:
        return _damage(db)
    timer = threading.Timer(limit_s, db.interrupt)
    timer.start()
    try:
        return _damage(db)
    except sqlite3.OperationalError as problem:
        if problem.sqlite_errorcode & 0xFF == sqlite3.SQLITE_INTERRUPT:
            raise Unfinished from None
        raise
    finally:
        timer.cancel()
        timer.join()  # so that it interrupts nothing else


def _damage(db: sqlite3.Connection) -> str | None:
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    return None if verdict == "ok" else str(verdict)


def table_damage(db: sqlite3.Connection, table: str) -> str | None:
    """Return what is wrong with one table and its indexes, or None."""
    (verdict,) = db.execute(f"PRAGMA integrity_check({table})").fetchone()
    return None if verdict == "ok" else str(verdict)


def first_inconsistency(db: sqlite3.Connection) -> str | None:
    """Return a sentence about the first inconsistency, or None. Reads the whole file, which may take seconds."""
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        return str(verdict)
    dangling = db.execute("PRAGMA foreign_key_check").fetchone()
    if dangling is not None:
        return f"a row of {dangling[0]} refers to a missing row of {dangling[2]}"
    for fault, sql in _COUNTED.items():
        (found,) = db.execute(sql).fetchone()
        if found:
            return f"{fault} ({found} times)"
    try:
        _read_everything(db)
    except CWMError as damaged:
        return damaged.message
    return None


def _read_everything(db: sqlite3.Connection) -> None:
    """Raise `Code.CORRUPT` for a row that fails its checksum, or a window that a search does not find."""
    read_totals(db)
    all_bindings(db)
    session_page(db, SessionQuery(limit=-1))
    chunks_where(db)
    check_trash(db)
    for (name,) in db.execute("SELECT name FROM notes").fetchall():
        read_note(db, name)
    for (number,) in db.execute("SELECT id FROM windows").fetchall():
        found = read_window(db, number)
        window = found.window
        if read_text(db, number) != found.text():
            raise damaged_window(window.name)
        snapshot = read_snapshot(db, window.snapshot_id, window.name)
        read_chunks(db, snapshot, window.name)
        read_token_ids(db, snapshot, window.name)
        read_proof(db, window.snapshot_id, window.name)


class StructureCheck:
    """The whole check of one file. `run` it on a thread of its own. Any thread may call `stop`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopped = threading.Event()
        self._connection: sqlite3.Connection | None = None

    def run(self) -> str | None:
        """Return what is wrong, or None. Blocks for seconds per GiB. Raises sqlite3.Error, also after `stop`.

        Each table is checked in a transaction of its own, so that SQLite's log does not grow meanwhile.
        """
        with closing(
            sqlite3.connect(self._path, timeout=_WAITS_FOR_LOCK_S, isolation_level=None, check_same_thread=False)
        ) as db:
            self._connection = db
            tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
            for (table,) in db.execute(tables).fetchall():
                if self._stopped.is_set():
                    raise sqlite3.OperationalError("stopped")
                fault = table_damage(db, table)
                if fault is not None:
                    return fault
            return None

    def stop(self) -> None:
        """Let `run` end soon."""
        self._stopped.set()
        if self._connection is not None:
            try:
                self._connection.interrupt()
            except sqlite3.ProgrammingError:
                return  # it has just closed
