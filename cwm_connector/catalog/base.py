"""The interface of the catalog: windows, their snapshots, and the chunks that the snapshots refer to. No KV bytes.

A **snapshot** is the immutable content of a window: passport, token ids and the list of chunk keys. Several windows
(clones) can share one snapshot. A **chunk row** is written only after the chunk's bytes are durable, and it stays while
a snapshot refers to it. The field `tiers` names the durable tiers in which this engine found or put the bytes. Only
this field changes later (`place`), when a chunk moves to a colder tier or a copy turns out to be bad.

Each row that is returned has passed a checksum over all its fields. Otherwise the method raises `Code.CORRUPT`. A
listing continues, and shows only the name of a damaged window.

Threads and blocking: a catalog belongs to one thread, the catalog thread of the engine or, if it is opened for reading,
a thread of the client. Every method may block on the disk, and on Redis if the catalog is shared, so none may be called
on the engine thread or an event loop. Each method that writes is one transaction. It is durable when the method
returns. After a kill at any instant, a transaction has happened completely or not at all.

An engine calls the catalog in this order. An implementation must keep what each step relies on:

1. Start: `structure_check` after opening, `bindings`, and in the background `sweep_unreferenced`, `chunks_after` and
   `place`, because recovery compares the tiers with the rows.
2. Freeze: `stored` first, to find the chunks that need no copy. The chunks are then made durable in a tier, and
   `commit_window` comes last. A row never refers to bytes that are not durable.
3. Thaw: `window`, `token_ids_of` and `chunks_of`, then `bind` before the client gets its salt.
4. Delete: `delete_window` first, then the bytes of the `orphans` are removed. Until `is_durable` is true, bytes without
   a row may still be referred to and must stay.
5. At any time in between: `place` after a chunk was copied, moved or lost, and the methods that only read.
6. Stop: `close`, on the same thread.

Times are whole microseconds since 1970 in UTC.
"""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cwm_connector.catalog.chunk_rows import DISK_ALONE as DISK_ALONE
from cwm_connector.catalog.chunk_rows import ChunkRow as ChunkRow
from cwm_connector.catalog.chunk_rows import DeletedWindow as DeletedWindow
from cwm_connector.catalog.chunk_rows import Origin as Origin
from cwm_connector.catalog.session_pages import SessionPage, SessionQuery, SessionRow
from cwm_connector.catalog.trash.base import Trash
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros, TierName

BEFORE_ALL: Final = Micros(-1)
"""Earlier than every window."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The greedy token that came after a window's tokens when it was frozen."""

    token_id: int = field(repr=False)
    logprob: float
    taken_at: Micros


@dataclass(frozen=True, slots=True)
class NewWindow:
    """Everything that a freeze commits at once."""

    name: str
    description: str
    tags: Sequence[str]
    model: str
    passport: Mapping[str, str]
    session_id: str
    head: str
    parent: str | None
    token_ids: bytes
    """Every computed token of the head, also those after the last full block, as little-endian int32."""
    restorable_tokens: int
    """Tokens that the chunks cover."""
    chunks: Sequence[ChunkKey]
    """The whole chain, in the order of the tokens."""
    stored: Sequence[ChunkRow]
    """The chunks that this freeze has written."""
    created_at: Micros
    private: bool = False
    """True if the head had a cache salt. Only the salt of a thaw opens such a window."""
    proof: Proof | None = None
    """The proof in an imported file. A freeze adds its own later."""
    origin: Origin | None = None
    """None unless it is imported."""


@dataclass(frozen=True, slots=True)
class WindowRow:
    """A window as listed. The large parts, token ids and chunks, have methods of their own."""

    name: str
    description: str
    tags: tuple[str, ...]
    model: str
    passport: Mapping[str, str]
    session_id: str
    head: str
    parent: str | None
    token_count: int
    restorable_tokens: int
    block_count: int
    """Stored chunks."""
    size_bytes: int
    unique_bytes: int
    """Bytes of the chunks that no other window refers to. Deleting the window frees them."""
    created_at: Micros
    updated_at: Micros
    thawed_at: Micros | None
    cloned: bool = False
    """True if a clone created it, and not a freeze."""
    private: bool = False
    """True if it was frozen under a cache salt. Only the salt of a thaw opens such a window."""
    origin: Origin | None = None
    """None unless its content was imported."""
    damaged: bool = False
    """True if the row failed its checksum. Such a row appears only in a listing, and all fields but the name are empty
    or 0."""

    @property
    def frozen_at(self) -> Micros:
        """Return when its content was frozen, which is before an import."""
        return self.created_at if self.origin is None else self.origin.frozen_at


class SortBy(enum.StrEnum):
    """The orders of a listing."""

    NAME = "name"
    CREATED_AT = "created_at"
    TOKEN_COUNT = "token_count"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class WindowQuery:
    """The conditions, the order and the page of a listing. A window has to meet all conditions."""

    tags: Sequence[str] = ()
    """Tags that the window must have, all of them."""
    model: str | None = None
    search: str | None = None
    """Words, each of which must stand in the name, the description or the tags, also inside a word."""
    session_id: str | None = None
    created_after: Micros | None = None
    created_before: Micros | None = None
    sort_by: SortBy = SortBy.CREATED_AT
    descending: bool = True
    limit: int = 20
    offset: int = 0

    @property
    def is_narrowed(self) -> bool:
        """Return whether there is a condition."""
        given = (self.model, self.search, self.session_id, self.created_after, self.created_before)
        return bool(self.tags) or any(condition is not None for condition in given)


@dataclass(frozen=True, slots=True)
class WindowPage:
    """A page of a listing."""

    windows: tuple[WindowRow, ...]
    total: int
    """Windows that meet the conditions, on all pages."""


@dataclass(frozen=True, slots=True)
class OpenWindows:
    """Windows that are not private, as far as they meet all conditions."""

    session_id: str | None = None
    after: Micros = BEFORE_ALL
    """They were created later than this."""
    max_chunks: int | None = None
    """They have at most so many chunks."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A thaw: the window that requests with this session id or with the salt may load. A private window is opened by
    the salt alone."""

    window_name: str
    session_id: str
    salt_hash: bytes
    """SHA-256 of the cache salt. The salt itself is never stored."""
    created_at: Micros


@dataclass(frozen=True, slots=True)
class TierTotals:
    """The chunks in one tier and their size."""

    chunks: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class CatalogTotals:
    """The number and the size of all windows and chunks."""

    windows: int
    chunks: int
    stored_bytes: int
    """Bytes of all chunks, each counted once."""
    referenced_bytes: int
    """Bytes of all chunks, each counted once for every window that refers to it, also one in the trash. Divided by
    `stored_bytes` it is the deduplication ratio."""
    tiers: Mapping[TierName, TierTotals]
    """The durable tiers. A chunk counts in each tier that holds it."""


class OutcomeUnknown(CWMError):
    """`Code.BACKEND` from a shared catalog that does not know whether the transaction has happened.

    It may also happen later, so the bytes that it refers to have to stay. Repeating the call is safe. It fails with
    `Code.WINDOW_EXISTS` or `Code.WINDOW_NOT_FOUND` if the first call has succeeded.
    """

    def __init__(self, problem: CWMError) -> None:
        """Take the error that left the outcome unknown."""
        super().__init__(
            Code.BACKEND,
            "Redis stopped answering before it confirmed this call; once it is back, check the result and call again",
            reason=problem.message,
        )


class StructureCheck(Protocol):
    """The part of the check of the catalog's file that a start leaves to do."""

    def run(self) -> str | None:
        """Return what is wrong with the file, or None. Takes seconds per GiB. Any thread."""

    def stop(self) -> None:
        """Let `run` end soon, with an error. Any thread."""


class Catalog(Protocol):
    """The methods of a catalog. The module's docstring says on which thread and in which order they are called.

    A method raises `Code.WINDOW_NOT_FOUND` for an unknown window and `Code.WINDOW_EXISTS` for a name that is taken.
    """

    def commit_window(self, new: NewWindow) -> WindowRow:
        """Add the window, its snapshot, its chunk rows and its references, and update the row of the session.

        A chunk of `stored` that already has a row keeps the claim of that row and gains the tiers of the new one.
        Raises `Code.WINDOW_EXISTS` if the name is taken, `Code.CHUNK_MISSING` if a key of `chunks` is neither in
        `stored` nor already stored in at least one tier.
        """

    def clone_window(
        self, source: str, target: str, description: str | None, tags: Sequence[str] | None, now: Micros
    ) -> WindowRow:
        """Add a second window over the snapshot of `source`, with `source` as its parent.

        A description or tags of None are inherited from `source`.
        """

    def add_proof(self, name: str, proof: Proof) -> None:
        """Store the proof of the window's snapshot, which its clones have in common. It replaces an older one."""

    def proof_of(self, name: str) -> Proof | None:
        """Return the proof of the window, or None if it has none."""

    def delete_window(self, name: str, keep: Iterable[ChunkKey] = ()) -> DeletedWindow:
        """Remove the window, its bindings, and the chunk rows that no window refers to any more.

        Chunks in `keep`, to which a freeze in flight refers, stay as rows without references until
        `sweep_unreferenced`. Windows whose parent it was stay whole and keep its name as their parent.
        """

    @property
    def trash(self) -> Trash:
        """Return the trash, where windows can be brought back from."""

    def sweep_unreferenced(self, keep: Iterable[ChunkKey] = ()) -> tuple[ChunkRow, ...]:
        """Remove and return the chunk rows without references, except those in `keep`."""

    def tag_window(
        self, name: str, add: Sequence[str], remove: Sequence[str], description: str | None, now: Micros
    ) -> WindowRow:
        """Change the tags of a window, and its description unless that is None. A tag in both lists stays."""

    def rename_window(self, name: str, new_name: str, now: Micros) -> WindowRow:
        """Give a window another name. It stays the parent of its children. Raises `Code.WINDOW_EXISTS`."""

    def window(self, name: str) -> WindowRow:
        """Return the window."""

    def children(self, name: str) -> tuple[str, ...]:
        """Return the names of the windows whose parent has this name, oldest first."""

    def chunks_of(self, name: str) -> tuple[ChunkRow, ...]:
        """Return the chunks of the window, in the order of the tokens."""

    def token_ids_of(self, name: str) -> bytes:
        """Return the token ids of the window as little-endian int32."""

    def stored(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, ChunkRow]:
        """Return the rows of those `keys` that have one."""

    def all_chunks(self) -> tuple[ChunkRow, ...]:
        """Return all chunk rows. A collection compares the tiers with them."""

    def chunks_after(self, last: ChunkKey | None, limit: int) -> tuple[ChunkRow, ...]:
        """Return the next chunk rows after the key `last`, in the order of their keys. None starts at the beginning.

        A walk over all chunks can continue after a restart.
        """

    def uses_after(self, last: ChunkKey | None, limit: int) -> tuple[tuple[ChunkRow, Micros], ...]:
        """Return the same rows with the time of the last freeze or thaw of a window that holds the chunk, or 0."""

    def windows_with(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, tuple[str, ...]]:
        """Return for each of `keys` the names of the windows that hold the chunk, oldest first."""

    def follow_beginnings(self, follow: Callable[[ChunkKey, int], None]) -> None:
        """Call `follow` with the first chunk of every window that is not private: its key and its number of tokens.

        It is called now for the windows that are there, and later for each new one, before the transaction ends. It
        must not block. The same chunk may come several times.
        """

    def is_open(self, key: ChunkKey, windows: OpenWindows) -> bool:
        """Return whether one of these windows holds the chunk."""

    def open_windows_with(self, key: ChunkKey, windows: OpenWindows, limit: int) -> tuple[str, ...]:
        """Return the names of those of these windows that hold the chunk, the newest first, at most `limit`."""

    def place(self, tier: TierName, came: Sequence[ChunkKey], went: Sequence[ChunkKey]) -> None:
        """Record that this engine's `tier` now holds `came` and no longer holds `went`. Ignore keys without a row."""

    def note(self, name: str, text: str | None) -> None:
        """Store a short text of this engine under a name, so that it survives a restart. None removes it."""

    def noted(self, name: str) -> str | None:
        """Return the text that `note` stored under the name, or None."""

    def list_windows(self, query: WindowQuery) -> WindowPage:
        """Return the page of windows that the query asks for."""

    def bind(self, binding: Binding) -> None:
        """Record a thaw, and set the window's `thawed_at` and the event of the session."""

    def bindings(self) -> tuple[Binding, ...]:
        """Return the newest 1,024 thaws, oldest first."""

    def last_thaw_into(self, session_id: str) -> Binding | None:
        """Return the newest of these thaws into the session, or None."""

    def session(self, session_id: str) -> SessionRow | None:
        """Return the session, or None if it was never frozen or thawed."""

    def sessions(self, query: SessionQuery) -> SessionPage:
        """Return a page of the sessions that were frozen or thawed, the one with the newest event first.

        One that no window was frozen from and none was thawed into any more is kept among the newest 1,024.
        """

    def sessions_of(self, session_ids: Sequence[str]) -> dict[str, SessionRow]:
        """Return those of these sessions that were frozen or thawed."""

    def totals(self) -> CatalogTotals:
        """Return the number and the size of all windows and chunks."""

    def is_durable(self) -> bool:
        """Return whether every transaction that this engine ever sent has a known outcome.

        If so, no window can refer to a chunk that has no row now.
        """

    def state(self) -> str | None:
        """Return None if all is well, or a sentence that says why answers may be stale and writes fail."""

    def structure_check(self) -> StructureCheck | None:
        """Return what checks the catalog's file, or None if it was checked when it was opened."""

    def refuse_writes(self, fault: str) -> None:
        """Let all writes fail from now on, because of this damage. Raises `Code.CORRUPT`, as each write does."""

    def compact(self) -> int:
        """Release the space that deleted windows took in the catalog and return its bytes. May take seconds."""

    def check_integrity(self) -> None:
        """Raise `Code.CORRUPT` if the file or the references are inconsistent."""

    def close(self) -> None:
        """Close the catalog. No other method may be called after it."""
