"""The mark of an automatic window, made by auto-freeze or by a client's hook.

The mark is the tag `auto` and the beginning of the description. Retention leaves a window alone once a user has removed
either of them, or has cloned the window. The client's hooks import this module: it needs the standard library only.
"""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

TAG: Final = "auto"
_MARK: Final = re.compile(r"auto-freeze \(([a-z-]+), generation (\d{1,9})\)")


class Reason(enum.StrEnum):
    """Why the window was made."""

    IDLE = "idle"
    THRESHOLD = "threshold"
    EVICTION = "eviction"
    SHUTDOWN = "shutdown"
    COMPACTION = "compaction"
    SESSION_END = "session-end"

    @property
    def kind(self) -> str:
        """Return the kind within which windows replace each other. Each reason of a client's hook is a kind of its own.

        A compaction loses what its hook has saved, and later windows of the session don't have it.
        """
        return self.value if self in (Reason.COMPACTION, Reason.SESSION_END) else "engine"


@dataclass(frozen=True, slots=True)
class Mark:
    """The mark as read from a window."""

    reason: Reason
    generation: int
    """Counts a session's automatic windows from 1."""

    def described(self, text: str) -> str:
        """Return a description that carries the mark, followed by `text`."""
        return f"auto-freeze ({self.reason.value}, generation {self.generation}): {text}"


def mark_of(description: str, tags: Sequence[str]) -> Mark | None:
    """Return the window's mark, or None for a window that a user named or took over."""
    found = _MARK.match(description)
    if found is None or TAG not in tags or found[1] not in set(Reason):
        return None
    return Mark(Reason(found[1]), int(found[2]))
