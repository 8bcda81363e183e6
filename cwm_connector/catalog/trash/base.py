"""The interface of the catalog's trash: windows that `cwm rm` has deleted and `cwm undo` can bring back.

A window in the trash is no window: no list, search or look-up finds it, nothing may load it, and its name is free. It
keeps its snapshot, and therefore its chunks, until it is purged. As in the rest of the catalog, each method that writes
is one transaction. A kill leaves the window either standing or in the trash.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from cwm_connector.catalog.chunk_rows import DeletedWindow
from cwm_connector.core.types import ChunkKey, Micros


@dataclass(frozen=True, slots=True)
class TrashedWindow:
    """A window in the trash. The name and the time tell it from every other one."""

    name: str
    token_count: int
    size_bytes: int
    trashed_at: Micros
    command: str
    """The id of the command that deleted it. Windows with the same id are brought back together."""
    damaged: bool = False
    """True if the row failed its checksum. All fields but the name and the time are empty or 0."""


@dataclass(frozen=True, slots=True)
class TrashTotals:
    """The number of windows in the trash, and what purging all of them would free."""

    windows: int
    freeable_bytes: int
    """Bytes of the chunks that only windows in the trash refer to."""


class Trash(Protocol):
    """The methods of `Catalog.trash`. The catalog's thread calls them."""

    def put(self, name: str, command: str, now: Micros) -> TrashedWindow:
        """Move the window into the trash, and drop its bindings as a deletion does.

        Raises `Code.WINDOW_NOT_FOUND`, `Code.CORRUPT` for a damaged window.
        """

    def restore(self, name: str | None, new_name: str | None, now: Micros) -> tuple[str, ...]:
        """Make windows of the trash stand again, and return their names.

        Without a name these are all windows of the last command. With one it is the newest of that name, as `new_name`
        if that is given. Raises `Code.WINDOW_NOT_FOUND` if there is none in the trash, `Code.WINDOW_EXISTS` if a name
        is taken again. Nothing is changed then.
        """

    def purge(self, name: str, trashed_at: Micros, keep: Iterable[ChunkKey] = ()) -> DeletedWindow:
        """Delete a window in the trash for good, as `Catalog.delete_window` does, also a damaged one.

        Raises `Code.WINDOW_NOT_FOUND`, or `Code.CORRUPT` if its chunks are not known.
        """

    def listed(self) -> tuple[TrashedWindow, ...]:
        """Return the windows in the trash, the oldest first. One whose name and time are damaged too is left out."""

    def totals(self) -> TrashTotals:
        """Return how much the trash holds."""
