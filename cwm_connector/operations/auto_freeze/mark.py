"""What marks a window that nobody asked for by name: made by auto-freeze, or by a client's hook.

The mark is the tag `auto` and the beginning of the description. Whoever takes either away, or clones the window, makes
it his own: retention leaves it alone. The client's hooks import this: the standard library and nothing else.
"""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

TAG: Final = "auto"
_MARK: Final = re.compile(r"auto-freeze \(([a-z-]+), generation (\d{1,9})\)")


class Reason(enum.StrEnum):
    """Why it was frozen."""

    IDLE = "idle"
    THRESHOLD = "threshold"
    EVICTION = "eviction"
    SHUTDOWN = "shutdown"
    COMPACTION = "compaction"
    SESSION_END = "session-end"

    @property
    def kind(self) -> str:
        """Windows of one kind replace each other. What a client's hook saved is a kind of its own: a compaction loses
        what it saved, and an idle conversation's later windows don't have it."""
        return self.value if self in (Reason.COMPACTION, Reason.SESSION_END) else "engine"


@dataclass(frozen=True, slots=True)
class Mark:
    reason: Reason
    generation: int
    """Counts a session's automatic windows from 1."""

    def described(self, text: str) -> str:
        """A description that carries the mark, and says the rest in `text`."""
        return f"auto-freeze ({self.reason.value}, generation {self.generation}): {text}"


def mark_of(description: str, tags: Sequence[str]) -> Mark | None:
    """The window's mark, or None for one that somebody named or took over."""
    found = _MARK.match(description)
    if found is None or TAG not in tags or found[1] not in set(Reason):
        return None
    return Mark(Reason(found[1]), int(found[2]))
