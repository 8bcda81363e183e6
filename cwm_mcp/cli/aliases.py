"""The other names that people type for commands."""

from collections.abc import Mapping
from typing import Any, Final

from typer.core import TyperGroup

ALIASES: Final[Mapping[str, str]] = {
    "branch": "clone",
    "delete": "rm",
    "fork": "clone",
    "list": "ls",
    "load": "thaw",
    "log": "cat",
    "ps": "sessions",
    "remove": "rm",
    "rename": "mv",
    "restore": "thaw",
    "resume": "thaw",
    "save": "freeze",
    "start": "serve",
    "status": "show",
}


class GroupWithAliases(TyperGroup):
    """A group that knows each command by its own name and by its aliases. The help lists only the names."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, or None."""
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))
