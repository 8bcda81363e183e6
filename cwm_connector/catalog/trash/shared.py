"""The trash of the shared catalog: changes go through the log, and the replica answers. See `catalog/trash/base.py`."""

from collections.abc import Callable, Iterable
from typing import Any

from cwm_connector.catalog.base import DeletedWindow
from cwm_connector.catalog.shared.changes import Change, Discard, Purge, Restore
from cwm_connector.catalog.trash.base import Trash, TrashedWindow, TrashTotals
from cwm_connector.core.types import ChunkKey, Micros


class RedisTrash:
    """`Trash` over a shared log."""

    def __init__(self, write: Callable[[Change], Any], replica: Callable[[], Trash]) -> None:
        """Take what makes a change in the log, and what returns the replica's trash once it has caught up."""
        self._write = write
        self._replica = replica

    def put(self, name: str, command: str, now: Micros) -> TrashedWindow:
        trashed: TrashedWindow = self._write(Discard(name, command, now))
        return trashed

    def restore(self, name: str | None, new_name: str | None, now: Micros) -> tuple[str, ...]:
        restored: tuple[str, ...] = self._write(Restore(name, new_name, now))
        return restored

    def purge(self, name: str, trashed_at: Micros, keep: Iterable[ChunkKey] = ()) -> DeletedWindow:
        deleted: DeletedWindow = self._write(Purge(name, trashed_at, tuple(keep)))
        return deleted

    def listed(self) -> tuple[TrashedWindow, ...]:
        return self._replica().listed()

    def totals(self) -> TrashTotals:
        return self._replica().totals()
