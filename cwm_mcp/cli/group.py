"""The group of all commands. A command's module is imported when somebody calls it or wants to see its help."""

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, Final

from typer.core import TyperGroup
from typer.main import get_command_from_info

from cwm_mcp.cli.commands.registration import without_types_of_switches

MODULES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("freeze", "thaw", "prove", "mv", "clone", "tag"), "windows"),
    "chat": "live.chat",
    "warm": "live.warm",
    **dict.fromkeys(("rm", "undo"), "delete"),
    **dict.fromkeys(("ls", "show", "sessions"), "inspect"),
    **dict.fromkeys(("tree", "cat", "diff"), "content"),
    **dict.fromkeys(("stats", "verify", "gc"), "storage"),
    **dict.fromkeys(("serve", "stop"), "live.serve"),
    "top": "live.top",
    **dict.fromkeys(("health", "metrics"), "engine"),
    **dict.fromkeys(("doctor", "completion"), "setup"),
    "help": "help",
    "policy": "policy",
    **dict.fromkeys(("export", "import"), "transfer"),
    "ui": "ui",
}
"""The module in `commands/` that each command is in, in the order in which the help lists the commands."""
ALIASES: Final[Mapping[str, str]] = {
    "branch": "clone",
    "continue": "chat",
    "delete": "rm",
    "fork": "clone",
    "list": "ls",
    "load": "thaw",
    "log": "cat",
    "ps": "sessions",
    "remove": "rm",
    "rename": "mv",
    "restore": "thaw",
    "run": "chat",
    "resume": "thaw",
    "save": "freeze",
    "start": "serve",
    "status": "show",
    "undelete": "undo",
}
"""The other names that people type for commands."""


class _OnDemand(MutableMapping[str, Any]):
    """The commands by name, each of them made when it is looked up for the first time."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _made(name)
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


def _made(name: str) -> Any:
    """Return a command of one of our modules. Raises: KeyError for another name."""
    commands = import_module(f"cwm_mcp.cli.commands.{MODULES[name]}").app.registered_commands
    info = next(each for each in commands if (each.name or each.callback.__name__) == name)
    return get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode="rich")


class CommandGroup(TyperGroup):
    """A group that knows each command by its own name and by its aliases. The help lists only the names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _OnDemand()

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with that of the help."""
        return without_types_of_switches(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names without making the commands."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, or None."""
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))
