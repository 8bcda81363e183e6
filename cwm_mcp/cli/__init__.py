"""The `cwm` command: its subcommands and how they print results.

Runs on one thread, with an event loop per command. Imports `ui`, `doctor`, `serve`, `api` and `settings`, but only once
a command needs them: `cwm --version` imports nothing else.
"""

import sys

from cwm_connector.version import __version__


def main() -> None:
    """Run the `cwm` command with the arguments of this process."""
    if sys.argv[1:] == ["--version"]:
        print(f"cwm {__version__}")
        return
    from cwm_mcp.cli.app import main as run

    run()


__all__ = ["main"]
