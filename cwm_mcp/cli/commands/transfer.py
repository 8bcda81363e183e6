"""Commands that export a window to a file and import one from it. The engine writes and reads the file."""

from pathlib import Path
from typing import Annotated

import typer

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_mcp.cli.commands.registration import WINDOWS, command
from cwm_mcp.cli.runner import Json, Quiet, Tags, Window, failed, parsed, print_result, run, with_bar

app = typer.Typer()


@command(
    app, WINDOWS, "export", examples=["cwm export project-kickoff -o kickoff.cwm", "cwm export w -o w.cwm --force"]
)
def export_window(
    window_name: Window,
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write, on the engine's machine.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a window to one file, to share or to archive.

    Reads and checks every block before writing it. A window with a block that cannot be verified is not exported. The
    file appears under its name only when it is complete and on the disk, and only you can read it. It contains the
    conversation: its tokens and the KV cache computed from them.
    """
    args = parsed(calls.ExportArgs, window_name=window_name, path=_absolute(output), force=force)
    label = f"exporting {window_name}"
    print_result(run(lambda cwm: with_bar(label, as_json or quiet, lambda on: cwm.export(args, on))), as_json, quiet)


@command(app, WINDOWS, "import", examples=["cwm import kickoff.cwm", "cwm import w.cwm --name from-anna --tag anna"])
def import_window(
    file: Annotated[str, typer.Argument(help="A file written by cwm export.")],
    name: Annotated[str | None, typer.Option("--name", help="A new name; by default the exported one.")] = None,
    tag: Tags = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Create a window from an exported file.

    The engine must serve the same weights in the same way. Otherwise the import fails with CWM-5003, which names the
    difference. Checks the whole file before anything becomes visible, and stores only blocks that are not stored yet.
    Checksums detect damage, not tampering. Import only files from people you trust.
    """
    args = parsed(calls.ImportArgs, path=_absolute(file), window_name=name, tags=tag)
    label = f"importing {file}"
    print_result(
        run(lambda cwm: with_bar(label, as_json or quiet, lambda on: cwm.import_window(args, on))), as_json, quiet
    )


def _absolute(path: str) -> str:
    """Return the absolute path, because the engine has a different working directory."""
    try:
        return str(Path(path).expanduser().absolute())
    except (RuntimeError, OSError):
        raise failed(CWMError(Code.ARGUMENT, f"{path} stands for no place here; give an absolute path")) from None
