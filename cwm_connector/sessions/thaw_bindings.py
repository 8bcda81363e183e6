"""Which windows a request may load: those thawed into its session or for its cache salt, and no others.

The control thread writes and the engine thread reads. The tables are replaced as a whole and never changed in place, so
neither thread waits for the other.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cwm_connector.core.identity import ChunkSpec
from cwm_connector.sessions.unnamed import PREFIX as ANONYMOUS

MAX_BOUND: Final = 32
"""Windows that one session can load from. A newer thaw replaces the oldest one."""


@dataclass(slots=True)
class BoundWindow:
    """The tokens and chunks of a window, as far as requests may use them."""

    name: str
    token_ids: "array[int]" = field(repr=False)
    chunks: tuple[ChunkSpec, ...] = field(repr=False)
    usable_blocks: int
    """Leading blocks whose chunks were not found bad. Only the engine thread changes it, and only lowers it."""

    def common_blocks(self, token_ids: "array[int]", block_tokens: int, limit: int) -> int:
        """Return how many leading blocks of the request, at most `limit`, this window holds."""
        blocks = min(limit, self.usable_blocks)
        ours = np.frombuffer(self.token_ids, dtype=np.int32, count=blocks * block_tokens)
        theirs = np.frombuffer(token_ids, dtype=np.int32, count=blocks * block_tokens)
        different = np.flatnonzero(ours != theirs)
        return int(different[0]) // block_tokens if different.size else blocks


class ThawBindings:
    """The windows that each session and each salt may load."""

    def __init__(self) -> None:
        self._by_session: dict[str, tuple[BoundWindow, ...]] = {}
        self._by_salt: dict[bytes, tuple[BoundWindow, ...]] = {}
        self._session_of: dict[bytes, str] = {}

    def bind(self, session_id: str, salt_hash: bytes, window: BoundWindow) -> None:
        """Allow the session and the salt to load `window`. It replaces an older thaw of the same name."""
        others = tuple(each for each in self._by_session.get(session_id, ()) if each.name != window.name)
        self._by_session = {**self._by_session, session_id: (window, *others)[:MAX_BOUND]}
        self._by_salt = {**self._by_salt, salt_hash: (window,)}
        self._session_of = {**self._session_of, salt_hash: session_id}

    def unbind(self, window_name: str) -> None:
        """Stop all requests from loading the window."""

        def without(table: dict, name: str) -> dict:  # type: ignore[type-arg]
            remaining = {key: tuple(each for each in bound if each.name != name) for key, bound in table.items()}
            return {key: bound for key, bound in remaining.items() if bound}

        self._by_session = without(self._by_session, window_name)
        self._by_salt = without(self._by_salt, window_name)

    def clear(self) -> None:
        """Stop all requests from loading any window."""
        self._by_session, self._by_salt = {}, {}

    def continued_by(self, token_ids: Sequence[int], block_tokens: int) -> str | None:
        """Return the anonymous session that these tokens continue, or None.

        The tokens continue a session if they repeat at least three quarters of the blocks of a window thawed into it.
        A client that sends no session id is recognised by this after a restart.
        """
        first = list(token_ids[:block_tokens])
        found: list[tuple[int, str]] = []
        for session_id, windows in self._by_session.items():
            if not session_id.startswith(ANONYMOUS):
                continue
            for window in windows:
                if window.usable_blocks and window.token_ids[:block_tokens].tolist() == first:
                    limit = len(token_ids) // block_tokens
                    common = window.common_blocks(array("i", token_ids), block_tokens, limit)
                    if 4 * common >= 3 * window.usable_blocks:
                        found.append((common, session_id))
        return max(found)[1] if found else None

    def thawed_into(self, salt_hash: bytes) -> str | None:
        """Return the session for which a thaw made this salt, or None if no thaw made it."""
        return self._session_of.get(salt_hash)

    def of(self, session_id: str | None, salt_hash: bytes | None) -> tuple[BoundWindow, ...]:
        """Return the windows that a request with this session id and salt may load, the newest thaw first."""
        by_session = self._by_session.get(session_id, ()) if session_id else ()
        by_salt = self._by_salt.get(salt_hash, ()) if salt_hash else ()
        return (*by_salt, *by_session)
