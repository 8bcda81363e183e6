"""Commands that export a window to a file and import one from it. The engine writes and reads the file."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_mcp.cli.commands.registration import WINDOWS, command
from cwm_mcp.cli.runner import Json, Quiet, Tags, Window, failed, parsed, print_result, run, settings, with_bar

app = typer.Typer()


@command(
    app,
    WINDOWS,
    "export",
    examples=["cwm export kickoff -o kickoff.cwm", "cwm export w -o - | ssh other cwm import -"],
)
def export_window(
    window_name: Window,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file to write, on the engine's machine; - for a pipe.")
    ],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a window to one file, to share or to archive.

    Reads and checks every chunk before writing it. A window with a chunk that cannot be verified is not exported. The
    file appears under its name only when it is complete and on the disk, and only you can read it. It contains the
    conversation: its tokens and the KV cache computed from them.
    """
    if output == "-":
        _export_to_pipe(window_name)
        return
    args = parsed(calls.ExportArgs, window_name=window_name, path=_absolute(output), force=force)
    label = f"exporting {window_name}"
    print_result(run(lambda cwm: with_bar(label, as_json or quiet, lambda on: cwm.export(args, on))), as_json, quiet)


@command(app, WINDOWS, "import", examples=["cwm import kickoff.cwm", "cwm import w.cwm --name from-anna --tag anna"])
def import_window(
    file: Annotated[str, typer.Argument(help="A file written by cwm export; - for a pipe.")],
    name: Annotated[str | None, typer.Option("--name", help="A new name; by default the exported one.")] = None,
    tag: Tags = None,
    reshard: Annotated[bool, typer.Option("--reshard", help="Take a file of another tensor parallel size.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Create a window from an exported file.

    The engine must serve the same weights in the same way. Otherwise the import fails with CWM-5003, which names the
    difference. Checks the whole file before anything becomes visible, and stores only chunks that are not stored yet.
    With --reshard the tensor parallel size may differ, for a model with standard attention in all layers.
    The tags of --tag are added to those in the file. Checksums detect damage, not tampering. Import only files from
    people you trust.
    """
    with contextlib.ExitStack() as files:
        path = files.enter_context(_file_from_pipe()) if file == "-" else _absolute(file)
        args = parsed(calls.ImportArgs, path=path, window_name=name, tags=tag, reshard=reshard)
        label = f"importing {file}"
        print_result(
            run(lambda cwm: with_bar(label, as_json or quiet, lambda on: cwm.import_window(args, on))), as_json, quiet
        )


def _export_to_pipe(window_name: str) -> None:
    """Write the exported window to stdout and nothing else. The engine writes a file first, as it checks the chunks."""
    if sys.stdout.isatty():
        raise typer.BadParameter("a window is not for the terminal; redirect the output, or give a file")
    with _private_folder() as folder:
        path = Path(folder, "window.cwm")
        args = parsed(calls.ExportArgs, window_name=window_name, path=str(path))
        run(lambda cwm: with_bar(f"exporting {window_name}", False, lambda on: cwm.export(args, on)))
        with path.open("rb") as exported:
            shutil.copyfileobj(exported, sys.stdout.buffer)


@contextlib.contextmanager
def _file_from_pipe() -> Iterator[str]:
    """Yield the path of a file with what stdin brings. It is deleted at the end."""
    with _private_folder() as folder:
        path = Path(folder, "window.cwm")
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield str(path)


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that the engine can see too and no other user can."""
    home = settings().home
    if not home.is_dir():
        raise failed(CWMError(Code.ENGINE_UNREACHABLE, f"{home} is not there; is CWM_HOME that of the engine?"))
    return tempfile.TemporaryDirectory(prefix="pipe-", dir=home)


def _absolute(path: str) -> str:
    """Return the absolute path, because the engine has a different working directory."""
    try:
        return str(Path(path).expanduser().absolute())
    except (RuntimeError, OSError):
        raise failed(CWMError(Code.ARGUMENT, f"{path} stands for no place here; give an absolute path")) from None
