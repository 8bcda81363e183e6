"""The `cwm` command: its subcommands and how they print results.

Runs on one thread, with an event loop per command. Imports `ui`, `doctor`, `serve`, `api` and `settings`.
"""

from cwm_mcp.cli.app import main

__all__ = ["main"]
