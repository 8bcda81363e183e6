"""Who hangs under whom, told from names that can be given anew."""

from collections.abc import Iterable

from cwm_mcp.api.results import WindowItem
from cwm_mcp.ui.models import TreeWindow


def in_tree(windows: Iterable[WindowItem]) -> list[TreeWindow]:
    """The windows, given oldest first, each with the one it hangs under.

    Only an older window counts as the parent. One of the same name that was made later is another: the parent was
    deleted and its name taken again, perhaps for a descendant of the child, which would close a circle.
    """
    placed: dict[str, TreeWindow] = {}
    for window in windows:
        if window.name in placed:
            continue  # listed on two pages, because something was deleted between them
        under = window.parent_window if window.parent_window in placed else None
        placed[window.name] = TreeWindow(**window.model_dump(), under=under)
    return list(placed.values())
