"""The check of the file's structure: the pages, each table against its indexes, and the index of words.

A start runs it for at most `LIMIT_S`, which is enough for some 100 MiB. The rest of a larger file is checked by a
`StructureCheck` on a thread and a connection of its own, so that the catalog thread goes on.
"""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Final

from cwm_connector.catalog.sqlite.check import table_damage, words_damage

LIMIT_S: Final = 0.25
_WAITS_FOR_LOCK_S: Final = 5.0


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
    return words_damage(db) if verdict == "ok" else str(verdict)


class StructureCheck:
    """The whole check of one file. `run` it on a thread of its own. Any thread may call `stop`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopped = threading.Event()
        self._connection: sqlite3.Connection | None = None

    def run(self) -> str | None:
        """Return what is wrong, or None. Blocks for seconds per GiB. Raises sqlite3.Error, also after `stop`.

        Each table is checked in a transaction of its own, so that SQLite's log does not grow meanwhile. The index of
        words needs the writer's lock for a second or two. A commit waits for that.
        """
        with closing(
            sqlite3.connect(self._path, timeout=_WAITS_FOR_LOCK_S, isolation_level=None, check_same_thread=False)
        ) as db:
            self._connection = db
            tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'window_words%'"
            for (table,) in db.execute(f"{tables} AND name NOT LIKE 'sqlite_%' ORDER BY name").fetchall():
                if self._stopped.is_set():
                    raise sqlite3.OperationalError("stopped")
                fault = table_damage(db, table)
                if fault is not None:
                    return fault
            return words_damage(db)

    def stop(self) -> None:
        """Let `run` end soon."""
        self._stopped.set()
        if self._connection is not None:
            try:
                self._connection.interrupt()
            except sqlite3.ProgrammingError:
                return  # it has just closed
