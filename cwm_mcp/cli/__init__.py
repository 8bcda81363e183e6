"""The `cwm` command: its subcommands and how they print results.

Runs on one thread, with an event loop per command that needs one. Imports `ui`, `doctor`, `serve`, `api` and
`settings`, but only once a command needs them: `cwm --version` imports nothing else.
"""

import gc
import sys

from cwm_connector.version import __version__


def main() -> None:
    """Run the `cwm` command with the arguments of this process. Ctrl-C ends it with one line, also while it starts."""
    if sys.argv[1:] == ["--version"]:
        print(f"cwm {__version__}")
        return
    # What is imported stays until the end. Searching it for garbage takes a quarter of the time of a list.
    gc.disable()
    try:
        code = _answered_at_once()
        if code is None:
            from cwm_mcp.cli.app import main as run

            gc.freeze()
            gc.enable()
            run()
    except KeyboardInterrupt:
        print("interrupted; cwm ls shows which windows there are", file=sys.stderr)
        code = 130
    finally:
        gc.freeze()  # Python searches for garbage once more when it ends
    sys.exit(code)


def _answered_at_once() -> int | None:
    """Answer a list or a completion without Typer. Return the exit code, or None for anything else."""
    from cwm_mcp.cli.fast.completion import complete_or_none
    from cwm_mcp.process import one_line_for_faults, prepare

    prepare()
    with one_line_for_faults():
        code = complete_or_none()
        if code is not None:
            return code
        from cwm_mcp.cli.fast.lists import answered

        return answered(sys.argv[1:])


__all__ = ["main"]
