"""Choose windows by names, patterns, tags and age, for commands that work on several."""

from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_window_name
from cwm_connector.protocol.results import WindowItem
from cwm_mcp.api.tree import all_windows

if TYPE_CHECKING:
    from cwm_mcp.api.operations import Operations

_PATTERN: Final = frozenset("*?[")
"""Characters that no name of a window has."""


class Selection(msgspec.Struct, frozen=True):
    """The windows to choose: those with one of the names, or all if there are none, that match all filters."""

    names: Sequence[str] = ()
    tags: Sequence[str] = ()
    before: str | None = None

    def __post_init__(self) -> None:
        """Raise `Code.ARGUMENT` for no choice at all, and the errors of names and times that can't be."""
        if not (self.names or self.tags or self.before):
            raise CWMError(Code.ARGUMENT, "no window is named; give names, patterns, --tag or --before")
        for name in self.names:
            if not _is_pattern(name):
                check_window_name(name)
        if self.before is not None:
            _moment(self.before)

    @property
    def only_name(self) -> str | None:
        """Return the name, if one window is chosen by its name alone."""
        alone = len(self.names) == 1 and not (self.tags or self.before or _is_pattern(self.names[0]))
        return self.names[0] if alone else None


async def chosen(operations: "Operations", selection: Selection) -> list[WindowItem]:
    """Return the chosen windows, oldest first. Raises `Code.WINDOW_NOT_FOUND` for a name or pattern without any."""
    windows = await all_windows(operations)
    for name in selection.names:
        if not any(fnmatchcase(window.name, name) for window in windows):
            raise CWMError(Code.WINDOW_NOT_FOUND, f"no window matches {name!r}; window_list shows what there is")
    return [window for window in windows if _matches(window, selection)]


def _matches(window: WindowItem, selection: Selection) -> bool:
    if selection.names and not any(fnmatchcase(window.name, name) for name in selection.names):
        return False
    if not set(selection.tags) <= set(window.tags):
        return False
    if selection.before is None:
        return True
    return window.created_at is not None and _moment(window.created_at) < _moment(selection.before)


def _is_pattern(name: str) -> bool:
    return not _PATTERN.isdisjoint(name)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CWMError(Code.ARGUMENT, f"{text!r} is not an ISO 8601 time; write it like 2026-01-23T09:30:00Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
