"""One engine's replica of the shared catalog: a SQLite file with the records of the log up to a position.

The position is stored in the file, in the same transaction as the records, so that a kill leaves both or neither. A
replica only applies records that are known to be on Redis's disk. A Redis that lost its last second is therefore never
behind a replica.

Catalog thread only. Every method may block on the disk, and `load` on Redis.
"""

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cwm_connector.catalog.base import ChunkRow, WindowQuery
from cwm_connector.catalog.shared.changes import (
    Change,
    Commit,
    Delete,
    Discard,
    Position,
    Purge,
    Record,
    Rename,
    Sweep,
    perform,
    position,
)
from cwm_connector.catalog.shared.checkpoint import POSITION_NOTE, fetched
from cwm_connector.catalog.shared.log import Checkpoint, RedisLog, damaged
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.file import SqliteFile
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName

_ALL: Final = WindowQuery(limit=2**62)
_OF_THE_FILE: Final = frozenset(
    {Code.WRITE_FAILED, Code.READ_FAILED, Code.QUOTA, Code.CORRUPT, Code.MEMORY, Code.BUSY, Code.NOT_ALLOWED}
)
"""Errors whose cause is on this machine. Any other error while a record is applied means that replicas differ."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A window or chunks that another engine's transaction removed from this replica."""

    window: str | None
    """The deleted window, or None if only unreferenced chunks were removed."""
    orphans: tuple[ChunkRow, ...]
    """Chunks whose rows are gone, with the tiers that this engine recorded. It has to remove its own copies."""


class Replica:
    """The replica of one engine."""

    def __init__(self, file: SqliteFile, path: Path, engine: str) -> None:
        """Take an open file. By the id `engine` an engine recognises records that it wrote before it was killed."""
        self.engine = engine
        self.file = file
        self.path = path
        self.catalog = SqliteCatalog(file, read_only=False)
        self.at = self._noted()
        """The position up to which the log was applied, or None if no record was."""

    @classmethod
    def open(cls, path: Path, home_id: str = "") -> "Replica":
        """Open the replica. `home_id` is that of `SqliteFile.open`, and it is the id of the engine as well.

        Raises the errors of `SqliteFile.open`, `Code.ARGUMENT` for a catalog with windows that are not shared.
        """
        return cls(SqliteFile.open(path, home_id=home_id), path, home_id or os.urandom(8).hex())

    def _noted(self) -> Position | None:
        noted = self.catalog.noted(POSITION_NOTE)
        if noted is not None:
            try:
                return position(noted)
            except ValueError:
                raise CWMError(
                    Code.CORRUPT, f"the catalog {self.path} has an invalid position; move it away and restart"
                ) from None
        totals = self.catalog.totals()
        if totals.windows or totals.chunks:
            raise CWMError(
                Code.ARGUMENT,
                f"the catalog {self.path} has windows that are not shared; set CWM_HOME to a new folder, or unset "
                "CWM_CATALOG",
            )
        return None

    def absorb(self, records: Iterable[Record]) -> list[Gone]:
        """Apply records in one transaction. Return what they removed."""
        with self.file.writing():
            gone, at = self.apply(records)
            if at is not None:
                self.note(at)
        self.at = at or self.at
        return gone

    def apply(self, records: Iterable[Record]) -> tuple[list[Gone], Position | None]:
        """Apply records within the caller's transaction. Return what they removed, and the last position."""
        gone, at = [], None
        for record in records:
            change = record.change
            if isinstance(change, Commit) and record.engine != self.engine:
                change = self._as_seen_here(change)
            result = self._perform(change, record)
            if isinstance(change, Delete):
                gone.append(Gone(change.name, result.orphans))
            elif isinstance(change, Rename | Discard):
                gone.append(Gone(change.name, ()))
            elif isinstance(change, Purge):
                gone.append(Gone(None, result.orphans))
            elif isinstance(change, Sweep):
                gone.append(Gone(None, result))
            at = record.at
        return gone, at

    def _as_seen_here(self, change: Commit) -> Commit:
        """Return another engine's commit as this engine has to record it.

        The chunks are not on this engine's disk. A chunk of which this engine knows no good copy is accepted, because
        the other engine knew one.
        """
        new = change.new
        stored = [replace(row, tiers=frozenset(tier for tier in row.tiers if tier.shareable)) for row in new.stored]
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
                f"record {record.at.number} of the shared catalog does not fit the replica {self.path}; move that file "
                "away and restart the engine, which creates a new one",
                record=record.at.number,
                reason=str(problem),
            ) from problem

    def note(self, at: Position) -> None:
        """Store the position, within the caller's transaction."""
        self.catalog.note(POSITION_NOTE, str(at))

    def load(self, log: RedisLog, checkpoint: Checkpoint) -> list[Gone]:
        """Replace the content by a checkpoint in one step, and keep this engine's own data. Return what was removed.

        Raises the errors of `fetched`.
        """
        home_id, notes = self._own_data()
        with fetched(log, checkpoint, self.path) as image:
            with closing(SqliteCatalog.open(image, home_id=home_id)) as incoming:
                noted = incoming.noted(POSITION_NOTE)
                if noted is None or position(noted) != checkpoint.at:
                    raise damaged("its checkpoint has another position than its description")
                gone = self._lost(incoming)
                rows = self.catalog.all_chunks()
                for tier in (tier for tier in TierName.durable() if not tier.shareable):
                    incoming.place(tier, [row.key for row in rows if tier in row.tiers], ())
                for name in notes:
                    incoming.note(name, self.catalog.noted(name))
            self.file.take_over(image)
        self.catalog.repeat_beginnings()
        self.at = checkpoint.at
        return gone

    def _own_data(self) -> tuple[str, list[str]]:
        """Return the id of the home and the names of this engine's notes."""
        with self.file.reading() as db:
            (home_id,) = db.execute("SELECT store FROM about").fetchone()
            names = db.execute("SELECT name FROM notes WHERE name != ?", (POSITION_NOTE,)).fetchall()
        return home_id, [name for (name,) in names]

    def _lost(self, incoming: SqliteCatalog) -> list[Gone]:
        """Return the windows and chunks of this replica that `incoming` does not have.

        A window with the same name and another time of creation is another window.
        """
        left = {(row.name, row.created_at) for row in incoming.list_windows(_ALL).windows}
        here = self.catalog.list_windows(_ALL).windows
        gone = [Gone(row.name, ()) for row in here if (row.name, row.created_at) not in left]
        keys = {row.key for row in incoming.all_chunks()}
        orphans = tuple(row for row in self.catalog.all_chunks() if row.key not in keys)
        return [*gone, Gone(None, orphans)] if orphans else gone

    def close(self) -> None:
        """Close the file."""
        self.catalog.close()
