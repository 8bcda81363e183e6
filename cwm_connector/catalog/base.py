"""The catalog's contract: names, snapshots, chunks and who refers to them. No KV bytes.

A **snapshot** is the immutable content of a window: passport, token ids, the list of chunk keys. Several windows
(clones) can share one snapshot. A **chunk row** exists if and only if the chunk's bytes were made durable before the
row was written, and stays while a snapshot refers to it; `tiers` says in which durable tiers this engine found or put
them. That alone may change afterwards (`place`): a chunk moves to a colder tier, a copy turns out to be bad.

Every row that a caller is given has passed a checksum over all its fields; one that has not raises CWM-4004. A listing
goes on: it tells the name of such a window and nothing else of it.

Threads: a catalog belongs to the one thread that uses it (the engine's catalog thread; a read-only catalog: the
client's). Every method may block on the disk, so none may be called from the engine thread or from an event loop.
Every writing method is one transaction, durable when it returns: after a kill at any instant it happened whole or not.

Times are whole microseconds since 1970 in UTC.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, Micros, TierName

DISK_ALONE: Final = frozenset({TierName.DISK})


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A stored chunk. `size_bytes` is what all its ranks' files take on disk, headers and padding included."""

    key: ChunkKey
    tokens: int
    size_bytes: int
    tiers: frozenset[TierName] = DISK_ALONE
    """The durable tiers that hold all its ranks' parts. Empty: no copy is known to be good; a freeze stores it anew."""
    claim: Claim = NO_CLAIM
    """That of the write which the row stands for; see core/types.py."""


@dataclass(frozen=True, slots=True)
class NewWindow:
    """All that a freeze commits at once: `chunks` is the whole chain, `stored` what this freeze wrote of it."""

    name: str
    description: str
    tags: Sequence[str]
    model: str
    passport: Mapping[str, str]
    session_id: str
    head: str
    parent: str | None
    token_ids: bytes
    """Little-endian int32, 4 bytes a token: every computed token of the session, full blocks and the rest."""
    restorable_tokens: int
    """Tokens that the chunks cover."""
    chunks: Sequence[ChunkKey]
    stored: Sequence[ChunkRow]
    created_at: Micros


@dataclass(frozen=True, slots=True)
class WindowRow:
    """A window as listed; the heavy parts (token ids, chunk keys) are asked for by name."""

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
    """Bytes of the chunks that no other window refers to: what deleting it would give back."""
    created_at: Micros
    updated_at: Micros
    thawed_at: Micros | None
    cloned: bool = False
    """Made by a clone, not by a freeze."""
    damaged: bool = False
    """Only in a listing: the row did not pass its checksum, and all but the name is unknown (empty or 0)."""


class SortBy(enum.StrEnum):
    NAME = "name"
    CREATED_AT = "created_at"
    TOKEN_COUNT = "token_count"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class WindowQuery:
    """All conditions hold together; `tags`: all of them; `search`: words in name, description and tags."""

    tags: Sequence[str] = ()
    model: str | None = None
    search: str | None = None
    session_id: str | None = None
    created_after: Micros | None = None
    created_before: Micros | None = None
    sort_by: SortBy = SortBy.CREATED_AT
    descending: bool = True
    limit: int = 20
    offset: int = 0


@dataclass(frozen=True, slots=True)
class WindowPage:
    windows: tuple[WindowRow, ...]
    total: int


@dataclass(frozen=True, slots=True)
class DeletedWindow:
    """What a deletion let go: `orphans` have no reference left and no row any more; their bytes may now be removed."""

    orphans: tuple[ChunkRow, ...]
    shared: int
    """Chunks of the window that others still refer to."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A thaw: the window that a session id, and whoever knows the salt, may load from."""

    window_name: str
    session_id: str
    salt_hash: bytes
    """SHA-256 of the cache salt. The salt itself is never stored."""
    created_at: Micros


class SessionEvent(enum.StrEnum):
    """The last thing that was done to a session in the catalog."""

    FROZEN = "frozen"
    THAWED = "thawed"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session that was frozen or thawed at least once, as it was then."""

    session_id: str
    model: str
    token_count: int
    event: SessionEvent
    created_at: Micros
    updated_at: Micros
    windows: tuple[str, ...] = field(default=())
    """Names of the windows frozen from it, newest first."""


@dataclass(frozen=True, slots=True)
class TierTotals:
    chunks: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class CatalogTotals:
    windows: int
    chunks: int
    stored_bytes: int
    """Each chunk once."""
    referenced_bytes: int
    """Each chunk as often as windows refer to it; over `stored_bytes` it is the dedup ratio."""
    tiers: Mapping[TierName, TierTotals]
    """The durable tiers, each with what it holds; a chunk counts in every one that has it."""


class OutcomeUnknown(CWMError):
    """CWM-5002 from a shared catalog: the transaction may have happened, or happen yet. Bytes that it refers to have to
    stay; whoever repeats it is told (CWM-3003, CWM-2002) if it had."""

    def __init__(self, problem: CWMError) -> None:
        super().__init__(
            Code.BACKEND,
            "Redis went away before it told whether this was done; look, and call again once it is back",
            reason=problem.message,
        )


class Catalog(Protocol):
    """See the module's text for threads and durability. Unknown windows raise CWM-2002, taken names CWM-3003."""

    def commit_window(self, new: NewWindow) -> WindowRow:
        """Window, snapshot, chunk rows and references at once; the session's row is updated.

        A chunk of `stored` that has a row already keeps that row's claim and gains the new row's tiers.
        Raises: CWM-3003 if the name is taken; CWM-2003 if a key of `chunks` is neither in `stored` nor stored already,
        in one tier at least.
        """

    def clone_window(
        self, source: str, target: str, description: str | None, tags: Sequence[str] | None, now: Micros
    ) -> WindowRow:
        """A second window over the source's snapshot, `parent` = source; None inherits description or tags."""

    def delete_window(self, name: str, keep: Iterable[ChunkKey] = ()) -> DeletedWindow:
        """Removes the window, its bindings, and what nobody refers to any more.

        Chunks in `keep` (a freeze in flight refers to them) stay as rows without references, for `sweep_unreferenced`.
        Windows whose parent it was keep the name as their lineage and stay whole.
        """

    def sweep_unreferenced(self, keep: Iterable[ChunkKey] = ()) -> tuple[ChunkRow, ...]:
        """Drops chunk rows without references, but for `keep`, and returns them."""

    def tag_window(
        self, name: str, add: Sequence[str], remove: Sequence[str], description: str | None, now: Micros
    ) -> WindowRow: ...

    def window(self, name: str) -> WindowRow: ...

    def children(self, name: str) -> tuple[str, ...]:
        """Names of the windows whose parent this is, oldest first."""

    def chunks_of(self, name: str) -> tuple[ChunkRow, ...]:
        """In the order of the tokens."""

    def token_ids_of(self, name: str) -> bytes:
        """Little-endian int32."""

    def stored(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, ChunkRow]:
        """Those of `keys` that are stored."""

    def all_chunks(self) -> tuple[ChunkRow, ...]:
        """Every stored chunk: what recovery compares the tiers with."""

    def chunks_after(self, last: ChunkKey | None, limit: int) -> tuple[ChunkRow, ...]:
        """The next stored chunks in the order of their keys, None begins: a walk that can go on after a restart."""

    def chunks_by_use(self) -> tuple[tuple[ChunkKey, Micros], ...]:
        """Every chunk with the last freeze or thaw of a window that holds it, longest ago first."""

    def windows_with(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, tuple[str, ...]]:
        """The names of the windows that hold each of `keys`, oldest first."""

    def place(self, tier: TierName, came: Sequence[ChunkKey], went: Sequence[ChunkKey]) -> None:
        """Records that this engine's `tier` now holds `came` and no longer `went`. Keys without a row are ignored."""

    def note(self, name: str, text: str | None) -> None:
        """Keeps a short text of this engine's own under a name over restarts; None forgets it."""

    def noted(self, name: str) -> str | None: ...

    def list_windows(self, query: WindowQuery) -> WindowPage: ...

    def bind(self, binding: Binding) -> None:
        """Records a thaw; sets the window's `thawed_at` and the session's event."""

    def bindings(self) -> tuple[Binding, ...]:
        """The newest 1,024, oldest first."""

    def last_thaw_into(self, session_id: str) -> Binding | None:
        """The newest of them into this session."""

    def session(self, session_id: str) -> SessionRow | None: ...

    def sessions(self) -> tuple[SessionRow, ...]:
        """Newest event first."""

    def totals(self) -> CatalogTotals: ...

    def is_durable(self) -> bool:
        """True if no transaction of this engine can happen any more that it does not know of: what has no row now is
        referred to by nobody."""

    def state(self) -> str | None:
        """None where all is as it should be; else in words why answers may be stale and writes fail."""

    def compact(self) -> int:
        """Gives back the room that deleted windows took in the catalog itself; returns bytes. May take seconds."""

    def check_integrity(self) -> None:
        """Raises CWM-4004 if the file or the references are inconsistent."""

    def close(self) -> None: ...
