"""Complete the names of windows, sessions and heads, as Typer would."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from cwm_mcp.cli import shell_completion

_WINDOW: Final = shell_completion.windows
NAMES: Final[Mapping[str, Sequence[shell_completion.Complete]]] = {
    "freeze": (shell_completion.sessions,),
    "undo": (shell_completion.deleted_windows,),
    "diff": (_WINDOW, _WINDOW),
    **dict.fromkeys(("thaw", "prove", "mv", "clone", "tag", "export", "show", "tree", "cat", "chat"), (_WINDOW,)),
}
"""The names that a command takes without an option, in their order."""
REPEATED: Final[Mapping[str, shell_completion.Complete]] = {"rm": _WINDOW, "warm": _WINDOW}
"""Commands that take any number of them."""
_QUOTES: Final = frozenset("'\"\\$`")


def completed(shell: str) -> int | None:
    """Print what the shell asks for and return the exit code, or return None where Typer has to complete."""
    line = _line(shell)
    if line is None:
        return None
    words, incomplete = line
    complete = _what(words, incomplete)
    if complete is None:
        return None
    names = complete(incomplete)
    if shell == "complete_zsh":
        shown = "\n".join('"' + name.replace(":", r"\\:") + '"' for name in names)
        print(f"_arguments '*: :(({shown}))'" if names else "_files")
    elif shell == "complete_fish" and os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return 0 if names else 1
    else:
        print("\n".join(names))
    return 0


def _line(shell: str) -> tuple[list[str], str] | None:
    """Return the complete words after `cwm`, and the one that is being typed."""
    if shell == "complete_bash":
        typed, number = os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "")
        words = typed.split()
        if not _QUOTES.isdisjoint(typed) or not number.isdecimal():
            return None
        at = int(number)
        return words[1:at], words[at] if at < len(words) else ""
    if shell in ("complete_zsh", "complete_fish"):
        typed = os.environ.get("_TYPER_COMPLETE_ARGS", "")
        words = typed.split()[1:]
        if not _QUOTES.isdisjoint(typed):
            return None
        return (words, "") if typed.endswith(" ") or not words else (words[:-1], words[-1])
    return None


def _what(words: Sequence[str], incomplete: str) -> shell_completion.Complete | None:
    """Return the function for the word, if it is a name and no option comes before it."""
    if not words or any(word.startswith("-") for word in (*words, incomplete)):
        return None
    command, place = words[0], len(words) - 1
    names = NAMES.get(command, ())
    return names[place] if place < len(names) else REPEATED.get(command)


def complete_or_none() -> int | None:
    """Answer the shell's request for completion. Return None if there is none, or if Typer has to answer."""
    shell = os.environ.get("_CWM_COMPLETE")
    try:
        return None if shell is None else completed(shell)
    finally:
        sys.stdout.flush()
