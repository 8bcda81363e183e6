"""The command `cwm`: its commands, and how they show results.

One thread, with an event loop for each command. Imports `ui`, `doctor`, `api` and `settings`.
"""

from cwm_mcp.cli.app import main

__all__ = ["main"]
