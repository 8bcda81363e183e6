"""What is dropped when the index takes too much memory.

Engine thread only. Nothing here blocks.

Inside a session side heads go first, then subagents, then other heads. Within a kind the one that was unused for
longest goes first. The default head, heads that are being answered, and heads with unfrozen tokens while auto-freeze is
on go last.

Of the sessions, those without a head go first, then those without a head of a chunk, then anonymous ones, then named
ones, then those with unfrozen tokens while auto-freeze is on, then those that are being answered. Within a class the
one that was unused for longest goes first. Where something that should have been kept is dropped, the log says so.
"""

import enum
import itertools
import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Collection
from typing import Final

from cwm_connector.sessions.head import Head
from cwm_connector.sessions.heads import MAX_HEADS, Heads
from cwm_connector.sessions.views import HeadKind

logger = logging.getLogger(__name__)

MAX_INDEX_BYTES: Final = 256 * 1024 * 1024
"""All sessions together."""
SESSION_SHARE: Final = 4
"""One session may take this fraction of it."""
MAX_SESSIONS: Final = 16_384
"""A list shows every session, so there is a limit on their number too."""
MAX_EMPTY_SESSIONS: Final = 1024
"""Sessions without a head: they have no full block, or they have expired."""
MAX_SIDE_HEADS: Final = 8
"""Side heads of one session. Those with unfrozen tokens are not counted while auto-freeze is on."""
_LOOKS: Final = 64
"""Sessions looked at to find one to drop."""

_KINDS: Final = (HeadKind.SIDE, HeadKind.SUBAGENT, HeadKind.CONVERSATION)


def exceeds(heads: Heads, limit_bytes: int) -> bool:
    """Return whether a session has more heads, or takes more memory, than one session may."""
    return heads.size_bytes > limit_bytes or len(heads) > MAX_HEADS or heads.sides > MAX_SIDE_HEADS


def trim_heads(
    session_id: str, heads: Heads, limit_bytes: int, running: Collection[str], unfrozen: Collection[str]
) -> None:
    """Drop heads until the session is within its bounds. One head is always kept."""
    sides = [head for head in _sides(heads) if head.name not in unfrozen]
    for head in sides[: max(0, len(sides) - MAX_SIDE_HEADS)]:
        heads.drop(head.name)
    default = heads.table.default()
    kept = default[0].name if default is not None else ""
    last = {kept, *running, *unfrozen}
    for head in sorted(
        heads.table.by_name.values(),
        key=lambda each: (each.name == kept, each.name in last, _KINDS.index(each.kind), each.activity),
    )[:-1]:
        if heads.size_bytes <= limit_bytes and len(heads) <= MAX_HEADS:
            return
        if head.name in last:
            logger.warning(
                "session %s: head %s of %d tokens was dropped to keep the index of sessions within its memory",
                session_id,
                head.name,
                head.token_count,
            )
        heads.drop(head.name)


def _sides(heads: Heads) -> list[Head]:
    """Return the side heads, the one that was unused for longest first."""
    return [head for head in heads.table.by_name.values() if head.kind is HeadKind.SIDE]


class EvictionClass(enum.IntEnum):
    """How soon a session is dropped."""

    EMPTY = 0
    TINY = 1
    ANONYMOUS = 2
    NAMED = 3
    UNFROZEN = 4
    RUNNING = 5


class EvictionQueue:
    """The sessions by class, in each class the one that was unused for longest first."""

    def __init__(self, class_of: Callable[[str], EvictionClass]) -> None:
        """`class_of` returns the class that a session has now."""
        self._class_of = class_of
        self._uses = itertools.count()
        self._queues: dict[EvictionClass, list[tuple[int, str]]] = {each: [] for each in EvictionClass}
        """By class: the sessions with the number of their last use, in its order."""
        self._placed: dict[str, tuple[EvictionClass, int]] = {}

    def used(self, session_id: str) -> None:
        """Move a session that was just used to the end of its class."""
        self.remove(session_id)
        self._place(session_id, next(self._uses))

    def changed(self, session_id: str) -> None:
        """Move a session to the class that it has now. Its place there is that of its last use."""
        _, use = self._placed[session_id]
        self.remove(session_id)
        self._place(session_id, use)

    def remove(self, session_id: str) -> None:
        """Forget a session."""
        placed = self._placed.pop(session_id, None)
        if placed is not None:
            which, use = placed
            queue = self._queues[which]
            del queue[bisect_left(queue, (use, session_id))]

    def count(self, which: EvictionClass) -> int:
        """Return how many sessions were in this class when it was last looked up."""
        return len(self._queues[which])

    def next(self) -> tuple[str, EvictionClass] | None:
        """Return the session to drop next, and its class. None if there is no session.

        A class can have changed since the session was used, for example because auto-freeze was turned on. It is looked
        up again, for a bounded number of sessions. If all of them are in later classes now, the first of the lowest of
        these classes is returned.
        """
        risen: list[EvictionClass] = []
        for _ in range(_LOOKS):
            queue = next((queue for queue in self._queues.values() if queue), None)
            if queue is None:
                return None
            _, session_id = queue[0]
            (placed, _), now = self._placed[session_id], self._class_of(session_id)
            if now <= placed:
                return session_id, now
            risen.append(now)
            self.changed(session_id)
        _, session_id = self._queues[min(risen)][0]
        return session_id, min(risen)

    def _place(self, session_id: str, use: int) -> None:
        now = self._class_of(session_id)
        self._placed[session_id] = (now, use)
        insort(self._queues[now], (use, session_id))
