"""Render trees, differences and diagnoses for a terminal. Importing this module registers them in `render`."""

from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from cwm_mcp.api.diff import Passage, WindowDiff
from cwm_mcp.api.tree import TreeNode, WindowTree
from cwm_mcp.cli import render
from cwm_mcp.cli.units import counted, printable, size
from cwm_mcp.doctor.report import Diagnosis

_AGES: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))
_COLOURS: Final = {"ok": "green", "warning": "yellow", "error": "red", "skipped": "dim"}


@render.renderable.register
def _(result: WindowTree) -> RenderableType:
    tree = Tree("", hide_root=True, guide_style="dim")
    now = datetime.now(UTC)

    def add(branch: Tree, nodes: list[TreeNode], parent: str | None) -> None:
        for node in nodes:
            add(branch.add(_label(node, parent, result.selected, now)), node.children, node.name)

    add(tree, result.roots, None)
    return tree if result.roots else Text("No windows yet. To create one, run: cwm freeze SESSION NAME")


def _label(node: TreeNode, shown_under: str | None, selected: str | None, now: datetime) -> Text:
    """Return a node's line. It names the parent if the node is not drawn under it."""
    label = Text(node.name, "bold reverse" if node.name == selected else "bold")
    whole, shared, own = map(size, (node.size_bytes, node.shared_bytes, node.unique_bytes))
    figures = f"{_known(node.token_count)} tokens, {_known(whole)} ({_known(shared)} shared, {_known(own)} its own)"
    label.append(f"  {figures}, {_known(node.storage_tier)}, {_age(node.created_at, now)}", "not bold")
    for tag in node.tags:
        label.append(f" #{tag}", "cyan")
    if node.state == "damaged":
        label.append(" damaged", "red")
    if node.parent_lost:
        label.append(f"  from {node.parent_window} (deleted)", "dim")
    elif node.parent_window is not None and node.parent_window != shown_under:
        label.append(f"  from {node.parent_window}", "dim")
    return label


def _known(value: object) -> str:
    return "-" if value is None else str(value)


def _age(created_at: str | None, now: datetime) -> str:
    if created_at is None:
        return "-"
    seconds = max(0, int((now - datetime.fromisoformat(created_at)).total_seconds()))
    return next((f"{seconds // unit} {name} old" for unit, name in _AGES if seconds >= unit), f"{seconds} s old")


@render.renderable.register
def _(result: WindowDiff) -> RenderableType:
    if not result.only_a_tokens and not result.only_b_tokens:
        head = f"{result.window_a} and {result.window_b} hold the same {result.common_tokens} tokens."
    else:
        head = f"{result.window_a} and {result.window_b} share their first {result.common_tokens} tokens."
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row(f"only in {result.window_a}", counted(result.only_a_tokens, "token"))
    table.add_row(f"only in {result.window_b}", counted(result.only_b_tokens, "token"))
    table.add_row("stored once for both", f"{counted(result.shared_blocks, 'chunk')}, {size(result.shared_bytes)}")
    parts: list[RenderableType] = [Text(head), table]
    for title, passage, style in (
        ("last tokens in common", result.common_end, ""),
        (f"{result.window_a} continues", result.next_a, "red"),
        (f"{result.window_b} continues", result.next_b, "green"),
    ):
        parts += [Text(), Text(f"{title}:", "bold"), _passage(passage, style)]
    if result.text_missing is not None:
        parts += [Text(), Text(f"Token ids are shown instead of text: {printable(result.text_missing)}", "dim")]
    return Group(*parts)


def _passage(passage: Passage, style: str) -> Text:
    if not passage.token_ids:
        return Text("(nothing)", "dim")
    if passage.text is None:
        return Text(" ".join(map(str, passage.token_ids)), style)
    return Text("\n".join(printable(line) for line in passage.text.splitlines()), style)


@render.renderable.register
def _(result: Diagnosis) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in result.checks:
        message = Text(printable(check.message))
        if check.next is not None:
            message.append(f"\n→ {printable(check.next)}", "bold")
        table.add_row(Text(check.status, _COLOURS[check.status]), check.name, message)
    return table
