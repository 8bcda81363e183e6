"""Commands that take a window out of a store and into another: as one file, which the engine writes and reads."""

from pathlib import Path
from typing import Annotated

import typer

from cwm_mcp.api import arguments as a
from cwm_mcp.cli.commands.frame import WINDOWS, command
from cwm_mcp.cli.runner import Json, Tags, Window, parsed, print_result, run, with_bar

app = typer.Typer()


@command(
    app, WINDOWS, "export", examples=["cwm export project-kickoff -o kickoff.cwm", "cwm export w -o w.cwm --force"]
)
def export_window(
    window_name: Window,
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write, on the engine's machine.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a window to one file, to hand on or to keep.

    Every block is read and checked before it is written; what can't be verified is not exported. The file appears
    under its name only once it is whole and on the disk, readable by you alone. It holds the conversation: its tokens,
    and the KV that was computed from them.
    """
    args = parsed(a.ExportArguments, window_name=window_name, path=_absolute(output), force=force)
    print_result(
        run(lambda cwm: with_bar(f"exporting {window_name}", as_json, lambda on: cwm.export(args, on))), as_json
    )


@command(app, WINDOWS, "import", examples=["cwm import kickoff.cwm", "cwm import w.cwm --name from-anna --tag anna"])
def import_window(
    file: Annotated[str, typer.Argument(help="A file that cwm export has written.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name than it was exported under.")] = None,
    tag: Tags = None,
    as_json: Json = False,
) -> None:
    """Make a window of an exported file.

    The engine must serve the same weights in the same way, or CWM-5003 names what differs. The whole file is checked
    before anything is visible, and only blocks that are not stored yet are stored. Checksums find damage, not malice:
    import only from people you trust.
    """
    args = parsed(a.ImportArguments, path=_absolute(file), window_name=name, tags=tag)
    print_result(
        run(lambda cwm: with_bar(f"importing {file}", as_json, lambda on: cwm.import_window(args, on))), as_json
    )


def _absolute(path: str) -> str:
    """As the engine needs it, whose current folder is another one."""
    return str(Path(path).expanduser().absolute())
