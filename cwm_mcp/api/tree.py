"""The lineage of windows as a tree: which one was made from which."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_connector.protocol.results import WindowItem

if TYPE_CHECKING:
    from cwm_mcp.api.operations import Operations

MAX_NESTING: Final = 12
"""Deeper descendants stand beside their ancestor of this depth: neither a terminal nor a JSON reader goes on forever,
and a conversation that is frozen every hour is one long chain. `parent_window` tells the truth anyway."""
_PAGE: Final = 100
_ATTEMPTS: Final = 3


class TreeNode(msgspec.Struct, frozen=True):
    """A window. `shared_bytes` are held by other windows too; `unique_bytes` by it alone."""

    name: str
    token_count: int | None
    size_bytes: int | None
    shared_bytes: int | None
    unique_bytes: int | None
    storage_tier: str | None
    state: str
    tags: list[str]
    created_at: str | None
    parent_window: str | None
    parent_lost: bool
    """The parent was deleted, or a younger window has its name."""
    children: "list[TreeNode]"


class WindowTree(msgspec.Struct, frozen=True, omit_defaults=True):
    roots: list[TreeNode]
    total: int
    selected: str | None = None
    """The window whose tree was asked for."""


async def all_windows(operations: "Operations") -> list[WindowItem]:
    """Return every window once, oldest first. A list that changes while it is read is read again."""
    found: dict[str, WindowItem] = {}
    for _ in range(_ATTEMPTS):
        found, totals, offset, more = {}, set(), 0, True
        while more:
            page = await operations.list_windows(
                calls.ListArgs(sort_by="created_at", sort_order="asc", limit=_PAGE, offset=offset)
            )
            found.update((window.name, window) for window in page.windows)
            totals.add(page.total)
            offset, more = offset + len(page.windows), page.has_more and bool(page.windows)
        if len(totals) == 1:
            break
    return list(found.values())


def parents_of(windows: Iterable[WindowItem]) -> dict[str, str | None]:
    """Return the parent of each window by name, or None for a root. `windows` must be given oldest first.

    A parent is always older than its child. A younger window with the parent's name is another window: the parent was
    deleted and its name was used again, perhaps for a descendant of the child, which would close a circle.
    """
    parents: dict[str, str | None] = {}
    for window in windows:
        if window.name not in parents:
            parents[window.name] = window.parent_window if window.parent_window in parents else None
    return parents


def tree_of(windows: Sequence[WindowItem], selected: str | None = None) -> WindowTree:
    """Return the windows under their parents, or with `selected` only the tree that contains this window.

    `windows` must be given oldest first. Raise `Code.WINDOW_NOT_FOUND` if `selected` is not among them.
    """
    parents = parents_of(windows)
    nodes: dict[str, TreeNode] = {}
    depths: dict[str, int] = {}
    tops: dict[str, str] = {}
    hosts: dict[str, str] = {}
    """Where a node's children are put: under itself, or from MAX_NESTING on under the same node as itself."""
    roots: list[TreeNode] = []
    for window in windows:
        parent = parents[window.name]
        node = _node(window, lost=parent is None and window.parent_window is not None)
        nodes[node.name] = node
        if parent is None:
            depths[node.name], tops[node.name], hosts[node.name] = 0, node.name, node.name
            roots.append(node)
            continue
        host = hosts[parent]
        depths[node.name], tops[node.name] = depths[host] + 1, tops[parent]
        hosts[node.name] = node.name if depths[node.name] < MAX_NESTING else host
        nodes[host].children.append(node)
    if selected is None:
        return WindowTree(roots=roots, total=len(nodes))
    if selected not in nodes:
        raise CWMError(
            Code.WINDOW_NOT_FOUND, f"no window named {selected!r}; 'cwm ls' shows what there is", window_name=selected
        )
    top = tops[selected]
    return WindowTree(roots=[nodes[top]], total=sum(1 for name in tops.values() if name == top), selected=selected)


def _node(window: WindowItem, *, lost: bool) -> TreeNode:
    shared = None
    if window.size_bytes is not None and window.unique_bytes is not None:
        shared = window.size_bytes - window.unique_bytes
    return TreeNode(
        name=window.name,
        token_count=window.token_count,
        size_bytes=window.size_bytes,
        shared_bytes=shared,
        unique_bytes=window.unique_bytes,
        storage_tier=window.storage_tier,
        state=window.state,
        tags=window.tags,
        created_at=window.created_at,
        parent_window=window.parent_window,
        parent_lost=lost,
        children=[],
    )


def walk(roots: Iterable[TreeNode]) -> Iterable[TreeNode]:
    """Return every node, parents first."""
    for node in roots:
        yield node
        yield from walk(node.children)
