"""Sessions that a catalog knows, questions about them, and a page of answers. Values for any thread."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from cwm_connector.core.types import Micros


class SessionEvent(enum.StrEnum):
    """The last operation on a session that the catalog recorded."""

    FROZEN = "frozen"
    THAWED = "thawed"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session that was frozen or thawed at least once, as it was at the last of these events."""

    session_id: str
    model: str
    token_count: int
    event: SessionEvent
    created_at: Micros
    updated_at: Micros
    windows: tuple[str, ...] = field(default=())
    """Names of the windows frozen from it, newest first."""


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """The conditions and the page of a list of sessions. The one with the newest event comes first."""

    event: SessionEvent | None = None
    """The last event of the session."""
    model: str | None = None
    without: Sequence[str] = ()
    """Sessions that are left out."""
    limit: int = 50
    offset: int = 0


@dataclass(frozen=True, slots=True)
class SessionPage:
    """A page of the list."""

    sessions: tuple[SessionRow, ...]
    total: int
    """Sessions that meet the conditions, on all pages."""
