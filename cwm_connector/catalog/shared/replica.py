"""One engine's copy of the shared catalog: a SQLite file that has applied the log up to a position noted in it.

The position is part of every transaction that moves it, so a kill leaves both or neither. The file never holds more
than what is known to be on Redis's disk, so a Redis that lost its last second is never behind a replica.
"""

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cwm_connector.catalog.base import ChunkRow, WindowQuery
from cwm_connector.catalog.shared.changes import Change, Commit, Delete, Position, Record, Sweep, perform, position
from cwm_connector.catalog.shared.checkpoint import POSITION_NOTE, fetched
from cwm_connector.catalog.shared.log import Checkpoint, RedisLog, damaged
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.file import SqliteFile
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName

_SHARED: Final = frozenset({TierName.REDIS})
_ALL: Final = WindowQuery(limit=2**62)
_OF_THE_FILE: Final = frozenset(
    {Code.WRITE_FAILED, Code.READ_FAILED, Code.QUOTA, Code.CORRUPT, Code.MEMORY, Code.BUSY, Code.NOT_ALLOWED}
)
"""What a record's application may fail with for reasons of this machine; anything else means that replicas differ."""


@dataclass(frozen=True, slots=True)
class Gone:
    """What somebody else's transaction took out of this replica."""

    window: str | None
    """The deleted window; None for chunks that nobody referred to."""
    orphans: tuple[ChunkRow, ...]
    """Chunks that have no row any more, with the tiers that this engine knew: it has to drop its own copies."""


class Replica:
    """See the module's text. It belongs to the catalog's thread."""

    def __init__(self, file: SqliteFile, path: Path, engine: str) -> None:
        """`engine`: this engine's id, by which it knows what it wrote itself before it was killed."""
        self.engine = engine
        self.file = file
        self.path = path
        self.catalog = SqliteCatalog(file, read_only=False)
        self.at = self._noted()
        """None until something of a log was applied."""

    @classmethod
    def open(cls, path: Path, store: str = "") -> "Replica":
        """`store`: see `SqliteFile.open`; it is the engine's id as well.

        Raises: as `SqliteFile.open`; CWM-1003 for a catalog with windows of its own.
        """
        return cls(SqliteFile.open(path, store=store), path, store or os.urandom(8).hex())

    def _noted(self) -> Position | None:
        noted = self.catalog.noted(POSITION_NOTE)
        if noted is not None:
            try:
                return position(noted)
            except ValueError:
                raise CWMError(
                    Code.CORRUPT, f"the catalog {self.path} notes a position that is none; move it away and restart"
                ) from None
        totals = self.catalog.totals()
        if totals.windows or totals.chunks:
            raise CWMError(
                Code.ARGUMENT,
                f"the catalog {self.path} has windows that are not shared; set CWM_HOME to a new folder, or leave "
                "CWM_CATALOG out",
            )
        return None

    def absorb(self, records: Iterable[Record]) -> list[Gone]:
        """Applies records in one transaction."""
        with self.file.writing():
            gone, at = self.apply(records)
            if at is not None:
                self.note(at)
        self.at = at or self.at
        return gone

    def apply(self, records: Iterable[Record]) -> tuple[list[Gone], Position | None]:
        """Inside the caller's transaction; returns also where the last record stands."""
        gone, at = [], None
        for record in records:
            change = record.change
            if isinstance(change, Commit) and record.engine != self.engine:
                change = self._as_seen_here(change)
            result = self._perform(change, record)
            if isinstance(change, Delete):
                gone.append(Gone(change.name, result.orphans))
            elif isinstance(change, Sweep):
                gone.append(Gone(None, result))
            at = record.at
        return gone, at

    def _as_seen_here(self, change: Commit) -> Commit:
        """What another engine committed: its tiers without its own disk. Where this engine knows no good copy of a
        chunk, the other one knew one: the window exists all the same."""
        new = change.new
        stored = [replace(row, tiers=row.tiers & _SHARED) for row in new.stored]
        fresh = {row.key for row in stored}
        known = self.catalog.stored([key for key in new.chunks if key not in fresh])
        return Commit(replace(new, stored=[*stored, *(row for row in known.values() if not row.tiers)]))

    def _perform(self, change: Change, record: Record) -> Any:
        try:
            return perform(change, self.catalog)
        except CWMError as problem:
            if problem.code in _OF_THE_FILE:
                raise
            raise CWMError(
                Code.CORRUPT,
                f"record {record.at.number} of the shared catalog doesn't fit the catalog {self.path}; move that file "
                "away and restart the engine, which makes it anew",
                record=record.at.number,
                reason=str(problem),
            ) from problem

    def note(self, at: Position) -> None:
        """Inside the caller's transaction."""
        self.catalog.note(POSITION_NOTE, str(at))

    def load(self, log: RedisLog, checkpoint: Checkpoint) -> list[Gone]:
        """Takes over a checkpoint in one step, and keeps what is this engine's own. Raises: as `fetched`."""
        store, notes = self._own()
        with fetched(log, checkpoint, self.path) as image:
            with closing(SqliteCatalog.open(image, store=store)) as incoming:
                noted = incoming.noted(POSITION_NOTE)
                if noted is None or position(noted) != checkpoint.at:
                    raise damaged("its checkpoint is another than it says")
                gone = self._lost(incoming)
                here = [row.key for row in self.catalog.all_chunks() if TierName.DISK in row.tiers]
                incoming.place(TierName.DISK, here, ())
                for name in notes:
                    incoming.note(name, self.catalog.noted(name))
            self.file.take_over(image)
        self.at = checkpoint.at
        return gone

    def _own(self) -> tuple[str, list[str]]:
        """The store's id and the names of the notes that are this engine's."""
        with self.file.reading() as db:
            (store,) = db.execute("SELECT store FROM about").fetchone()
            names = db.execute("SELECT name FROM notes WHERE name != ?", (POSITION_NOTE,)).fetchall()
        return store, [name for (name,) in names]

    def _lost(self, incoming: SqliteCatalog) -> list[Gone]:
        """Windows and chunks that this replica has and `incoming` has not; a name that was given anew counts."""
        left = {(row.name, row.created_at) for row in incoming.list_windows(_ALL).windows}
        here = self.catalog.list_windows(_ALL).windows
        gone = [Gone(row.name, ()) for row in here if (row.name, row.created_at) not in left]
        keys = {row.key for row in incoming.all_chunks()}
        orphans = tuple(row for row in self.catalog.all_chunks() if row.key not in keys)
        return [*gone, Gone(None, orphans)] if orphans else gone

    def close(self) -> None:
        self.catalog.close()
