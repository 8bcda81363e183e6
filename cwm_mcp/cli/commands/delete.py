"""`cwm rm`: delete windows by name, by pattern, by tag or by age. `cwm undo`: bring them back."""

import secrets
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_connector.protocol.calls import Op
from cwm_connector.protocol.trash import Restored, Trashed, TrashList
from cwm_mcp.api.direct.reads import Reads
from cwm_mcp.cli import shell_completion
from cwm_mcp.cli.commands.registration import WINDOWS, command
from cwm_mcp.cli.runner import Json, Quiet, WithTags, ask, failed, parsed, print_result, read, run
from cwm_mcp.cli.selection import Selection, chosen
from cwm_mcp.cli.sentences import Removed
from cwm_mcp.cli.units import size

if TYPE_CHECKING:
    from cwm_mcp.api.operations import Operations

app = typer.Typer()


@command(
    app,
    WINDOWS,
    examples=["cwm rm idea-b", "cwm rm 'draft-*' notes", "cwm rm --tag auto --before 2026-01-01 --dry-run"],
    exits={0: "deleted", 1: "an error, or you answered no", 2: "nobody could be asked, and --force was not given"},
)
def rm(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of windows, or patterns in quotes such as 'draft-*'.",
            autocompletion=shell_completion.windows,
            show_default=False,
            metavar="WINDOW",
        ),
    ] = None,
    tag: WithTags = None,
    before: Annotated[str | None, typer.Option(help="Only windows created before this ISO 8601 time.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="List the windows and delete nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Delete without asking.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Delete for good, so that cwm undo can't bring it back.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete windows, after asking, so that cwm undo can bring them back.

    Nothing lists or loads a deleted window, and its name is free at once. Its chunks stay for CWM_TRASH_HOURS, 24 by
    default, and go earlier if the disk tier needs their room. With --now, the chunks that no other window uses are
    removed from every tier at once. Clones and later freezes of the same conversation stay complete. A window must have
    one of the names and match all filters. Where nobody can be asked, as in a pipe, --force is needed.
    """
    try:
        selection = Selection(names=names or (), tags=tag or (), before=before)
    except CWMError as problem:
        raise failed(problem) from None
    command = None if now else secrets.token_hex(8)
    if dry_run:
        windows = run(lambda cwm: _listed(cwm, selection))
        print_result(windows, as_json, quiet)
        return
    if selection.only_name is not None:
        _confirm(f"Delete window '{selection.only_name}'?", force)
        name = selection.only_name
        print_result(read(lambda engine: _delete(engine, name, command)), as_json, quiet)
        return
    windows = run(lambda cwm: _listed(cwm, selection))
    if windows.windows:
        own = size(sum(window.unique_bytes or 0 for window in windows.windows))
        listed = ", ".join(window.name for window in windows.windows)
        _confirm(f"Delete {windows.total} windows with {own} of their own ({listed})?", force)
    print_result(read(lambda engine: _delete_all(engine, windows, command)), as_json, quiet)


@command(
    app,
    WINDOWS,
    examples=["cwm undo", "cwm undo idea-b --as idea-b-again", "cwm undo --list"],
)
def undo(
    window_name: Annotated[
        str | None,
        typer.Argument(
            help="A deleted window. By default all that the last cwm rm deleted.",
            autocompletion=shell_completion.deleted_windows,
            show_default=False,
        ),
    ] = None,
    new_name: Annotated[
        str | None, typer.Option("--as", help="Another name for it, if its own is taken again.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", "-l", help="List the deleted windows and bring none back.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring back what cwm rm has deleted.

    A window comes back with its name, tags, description and content. Of several deleted windows of one name, the last
    one does. Sessions into which it was thawed need a new thaw.
    """
    if listed:
        print_result(ask(TrashList, Op.TRASH_LIST, calls.NoArgs()), as_json, quiet)
        return
    args = parsed(calls.RestoreArgs, window_name=window_name, new_name=new_name)
    print_result(ask(Restored, Op.RESTORE, args), as_json, quiet)


async def _listed(cwm: "Operations", selection: Selection) -> m.WindowList:
    windows = await chosen(cwm, selection)
    return m.WindowList(windows=windows, total=len(windows), has_more=False)


def _delete(engine: Reads, name: str, command: str | None) -> m.Deleted | Trashed:
    """Put a window into the trash as part of a command. Without a command, delete it for good."""
    if command is None:
        return engine.ask(m.Deleted, Op.DELETE, calls.DeleteArgs(window_name=name))
    return engine.ask(Trashed, Op.TRASH, calls.TrashArgs(window_name=name, command=command))


def _delete_all(engine: Reads, windows: m.WindowList, command: str | None) -> Removed:
    """Delete the windows one by one. An error says how many are gone already."""
    deleted: list[m.Deleted | Trashed] = []
    for window in windows.windows:
        try:
            deleted.append(_delete(engine, window.name, command))
        except CWMError as problem:
            gone = f"{len(deleted)} of {windows.total} windows are deleted, but not '{window.name}'"
            raise CWMError(problem.code, f"{gone}: {problem.message}", **problem.context) from None
    return Removed(windows=deleted, space_freed_bytes=sum(each.space_freed_bytes for each in deleted))


def _confirm(question: str, force: bool) -> None:
    """Ask on a terminal. Raise `typer.Exit` with code 1 after a no, and with code 2 where nobody can be asked."""
    if force:
        return
    if not sys.stdin.isatty():
        raise failed(CWMError(Code.ARGUMENT, "nothing was deleted, because nobody can be asked here; add --force"))
    if not typer.confirm(question, err=True):
        print("Nothing was deleted.", file=sys.stderr)
        raise typer.Exit(1)
