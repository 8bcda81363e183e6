"""Which windows a request may load because of a thaw, and the windows that are in memory for loading.

A request with a cache salt may load the window that was thawed for this salt and nothing else. A request without one
may load what was thawed into its session. A private window is never bound to a session.

The control thread writes and the engine thread reads. A table is replaced as a whole, or changed by one assignment that
a reader sees or does not see, so neither thread waits for the other.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.keys.extras import PLAIN, Extras
from cwm_connector.core.types import Micros, now_micros
from cwm_connector.sessions.unnamed import PREFIX as ANONYMOUS

MAX_BOUND: Final = 32
"""Windows that one session can load from. A newer thaw replaces the oldest one."""
MAX_THAWS: Final = 1024
"""Sessions and salts with a thaw. The oldest ones are forgotten, as in the catalog."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Tokens and chunks of windows in memory: about a hundred windows of 128,000 tokens. Others are read again when needed.
"""
_CHUNK_BYTES: Final = 200
"""Memory that a chunk's key and its object take."""


K = TypeVar("K")
V = TypeVar("V")


class Lease:
    """Whether requests may still load the windows that share it: all that were read under one name."""

    __slots__ = ("__weakref__", "withdrawn")

    def __init__(self) -> None:
        self.withdrawn = False


@dataclass(slots=True, eq=False)
class BoundWindow:
    """The tokens and chunks of a window, as far as requests may use them."""

    name: str
    token_ids: "array[int]" = field(repr=False)
    chunks: tuple[ChunkSpec, ...] = field(repr=False)
    usable_blocks: int
    """Leading blocks whose chunks were not found bad. Only the engine thread changes it, and only lowers it."""
    boundaries: tuple[int, ...] = ()
    """The blocks at which it can be resumed. Empty: at each of its blocks."""
    lease: Lease = field(default_factory=Lease, repr=False)
    extras: Extras = field(default=PLAIN, repr=False)

    @property
    def n_bytes(self) -> int:
        """Return about how much memory the window takes."""
        return len(self.token_ids) * self.token_ids.itemsize + len(self.chunks) * _CHUNK_BYTES

    @property
    def blocks(self) -> int:
        """Return how many blocks the window's chunks cover."""
        return self.chunks[-1].end_block if self.chunks else 0

    def common_blocks(
        self, token_ids: "array[int]", block_tokens: int, limit: int, first: int = 0, extras: Extras = PLAIN
    ) -> int:
        """Return how many leading blocks of `token_ids`, at most `limit`, this window holds from block `first` on.

        `extras` are those of all tokens from the beginning on.
        """
        alike = self.extras.common_tokens(extras) // block_tokens
        blocks = min(limit, self.usable_blocks - first, alike - first)
        if blocks <= 0:
            return 0
        tokens, start = blocks * block_tokens, first * block_tokens * self.token_ids.itemsize
        ours = np.frombuffer(self.token_ids, dtype=np.int32, count=tokens, offset=start)
        different = ours != np.frombuffer(token_ids, dtype=np.int32, count=tokens)
        at = int(different.argmax())
        return at // block_tokens if different[at] else blocks

    def loadable(self, common: int) -> int:
        """Return how many of the `common` blocks can still be loaded: up to the last boundary, if it has any."""
        end = 0 if self.lease.withdrawn else min(common, self.usable_blocks)
        return max((each for each in self.boundaries if each <= end), default=0) if self.boundaries else end


class _Memory:
    """Windows by name, the least recently used first."""

    def __init__(self) -> None:
        self.windows: dict[str, BoundWindow] = {}
        self.leases: WeakValueDictionary[str, Lease] = WeakValueDictionary()
        """Also those of windows that are no longer in memory, but that a request is about to load."""
        self._n_bytes = 0

    def put(self, window: BoundWindow, max_bytes: int) -> None:
        """Add the window, or make it the most recently used one. It replaces another one of its name."""
        self.take(window.name)
        window.lease = self.leases.setdefault(window.name, window.lease)
        self.windows[window.name] = window
        self._n_bytes += window.n_bytes
        while self._n_bytes > max_bytes and len(self.windows) > 1:
            self.take(next(iter(self.windows)))

    def take(self, name: str) -> None:
        """Remove the window if it is there."""
        window = self.windows.pop(name, None)
        self._n_bytes -= window.n_bytes if window is not None else 0

    def withdraw(self, name: str) -> None:
        """Remove the window, and let no request load it any more."""
        self.take(name)
        lease = self.leases.pop(name, None)
        if lease is not None:
            lease.withdrawn = True


class ThawBindings:
    """The windows that each session and each salt may load, and the bounded memory of windows."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._by_session: dict[str, tuple[str, ...]] = {}
        self._by_salt: dict[bytes, str] = {}
        self._session_of: dict[bytes, str] = {}
        self._memory = _Memory()
        self.changes = 0
        """Counts the calls that withdraw windows. A window that was read before the last of them is not remembered."""
        self.cleared_at = Micros(-1)
        """When all windows were last withdrawn. Older windows load only after a new thaw."""

    # --- the control thread ---

    def bind(self, session_id: str, salt_hash: bytes, window: BoundWindow, *, private: bool = False) -> None:
        """Allow the salt, and the session unless `private`, to load `window`. It replaces an older thaw of the name."""
        self._memory.put(window, self._max_bytes)
        self.bind_name(session_id, salt_hash, window.name, private=private)

    def bind_name(self, session_id: str, salt_hash: bytes, name: str, *, private: bool) -> None:
        """Do the same for a window that is read when a request needs it."""
        if not private:
            others = tuple(each for each in self._by_session.get(session_id, ()) if each != name)
            self._by_session = _newest(self._by_session, session_id, (name, *others)[:MAX_BOUND])
        self._by_salt = _newest(self._by_salt, salt_hash, name)
        self._session_of = _newest(self._session_of, salt_hash, session_id)

    def remember(self, window: BoundWindow, changes: int) -> bool:
        """Keep a window in memory that was read while `changes` was the count. Return whether it may be loaded."""
        if changes == self.changes:
            self._memory.put(window, self._max_bytes)
        return changes == self.changes

    def unbind(self, window_name: str) -> None:
        """Stop all requests from loading the window."""
        self.changes += 1
        self._memory.withdraw(window_name)
        named = {session: tuple(each for each in names if each != window_name) for session, names in self._bound()}
        self._by_session = {session: names for session, names in named.items() if names}
        self._by_salt = {salt: name for salt, name in self._by_salt.items() if name != window_name}

    def clear(self) -> None:
        """Stop all requests from loading any window that there is now, unless it is thawed again. Any thread."""
        self.changes += 1
        self.cleared_at = now_micros()
        self._by_session, self._by_salt = {}, {}
        memory, self._memory = self._memory, _Memory()
        for name in list(memory.leases):
            memory.withdraw(name)

    def anonymous_session_of(self, window_name: str) -> str | None:
        """Return the anonymous session that the window was thawed into, or None."""
        return next(
            (session for session, names in self._bound() if session.startswith(ANONYMOUS) and window_name in names),
            None,
        )

    # --- any thread ---

    def thawed_into(self, salt_hash: bytes) -> str | None:
        """Return the session for which a thaw made this salt, or None if no thaw made it."""
        return self._session_of.get(salt_hash)

    def resumes(self, session_id: str, salt_hash: bytes, token_ids: Sequence[int], tokens: int) -> bool:
        """Return whether a thaw into the session made this salt, and its window begins with the first `tokens` ids.

        A window that is not in memory is not compared.
        """
        name = self._by_salt.get(salt_hash)
        window = None if name is None else self._memory.windows.get(name)
        if window is None or self._session_of.get(salt_hash) != session_id or len(window.token_ids) < tokens:
            return False
        return window.token_ids[:tokens] == array("i", token_ids[:tokens])

    def names_of(self, session_id: str | None, salt_hash: bytes | None) -> tuple[str, ...]:
        """Return the names of the windows that a request may load, the newest thaw first. A salt alone decides."""
        if salt_hash is not None:
            return (name,) if (name := self._by_salt.get(salt_hash)) is not None else ()
        return self._by_session.get(session_id, ()) if session_id else ()

    def of(self, session_id: str | None, salt_hash: bytes | None) -> tuple[BoundWindow, ...]:
        """Return those of these windows that are in memory."""
        found = (self._memory.windows.get(name) for name in self.names_of(session_id, salt_hash))
        return tuple(window for window in found if window is not None)

    def window(self, name: str) -> BoundWindow | None:
        """Return the window if it is in memory."""
        return self._memory.windows.get(name)

    # --- internal ---

    def _bound(self) -> list[tuple[str, tuple[str, ...]]]:
        return list(self._by_session.items())


def _newest(table: dict[K, V], key: K, value: V) -> dict[K, V]:
    """Return the table with the key as its newest one, and without the oldest ones beyond `MAX_THAWS`."""
    others = [(each, known) for each, known in table.items() if each != key]
    return dict([*others[-MAX_THAWS + 1 :], (key, value)])
