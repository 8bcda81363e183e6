"""Questions about the sessions that a catalog knows, and a page of answers. Values for any thread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """The conditions and the page of a list of sessions. The one with the newest event comes first."""

    event: str | None = None
    """The last event of the session, a `SessionEvent`."""
    model: str | None = None
    without: Sequence[str] = ()
    """Sessions that are left out."""
    limit: int = 50
    offset: int = 0


@dataclass(frozen=True, slots=True)
class SessionPage(Generic[Row]):
    """A page of the list."""

    sessions: tuple[Row, ...]
    total: int
    """Sessions that meet the conditions, on all pages."""
