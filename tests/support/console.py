"""Run the commands that a document shows, in their order, and compare what they print with what the document shows.

A command begins with `$ ` in an indented block, and goes on while its lines are indented further. The lines below it
are its output. Figures and times may differ. An `…` stands for anything: alone for any lines, in a line for any text.
"""

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MARK: Final = "\x1e"
_INDENT: Final = "    "
_FIGURE: Final = re.compile(r"\d[\d,.:]*")


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a document, and the lines below it."""

    command: str
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended, and the lines that it printed."""

    code: int
    printed: tuple[str, ...]


def steps(document: Path) -> Iterator[Step]:
    """Yield the commands of a document."""
    block: list[str] = []
    for line in (*document.read_text().splitlines(), "end"):
        if line.startswith(_INDENT) or not line:
            block.append(line.removeprefix(_INDENT))
            continue
        yield from _steps_of(block)
        block = []


def _steps_of(block: list[str]) -> Iterator[Step]:
    starts = [place for place, line in enumerate(block) if line.startswith("$ ")]
    for start, end in itertools.pairwise([*starts, len(block)]):
        command, *rest = block[start:end]
        more = list(itertools.takewhile(lambda line: line.startswith(_INDENT), rest))
        shown = "\n".join(rest[len(more) :]).rstrip()
        yield Step("\n".join([command.removeprefix("$ "), *more]), tuple(shown.splitlines()))


def run(commands: list[str], environment: Mapping[str, str], folder: Path) -> list[Ran]:
    """Run the commands one after another in one shell, in `folder`. `cwm serve` only prints its command."""
    tools = folder / "bin"
    tools.mkdir()
    program = f"{shlex.quote(sys.executable)} -m cwm_mcp.cli"
    (tools / "cwm").write_text(f'#!/bin/sh\n[ "$1" != serve ] || set -- "$@" --dry-run\nexec {program} "$@"\n')
    (tools / "cwm").chmod(0o755)
    script = "".join(f"{{ {command}\n}} 2>&1\nprintf '{_MARK}%s\\n' $?\n" for command in commands)
    path = f"{tools}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**environment, "PATH": path, "NO_COLOR": "1"}, cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    parts = re.split(rf"{_MARK}(\d+)\n", done.stdout)
    assert len(parts) == 2 * len(commands) + 1, done.stderr
    return [
        Ran(int(code), tuple(printed.splitlines())) for printed, code in zip(parts[:-1:2], parts[1::2], strict=True)
    ]


def is_shown(shown: tuple[str, ...], printed: tuple[str, ...]) -> bool:
    """Return whether the printed lines are those that are shown, but for figures and spaces."""
    wanted = "".join(r"(?:.*\n)*" if line.strip() == "…" else f"{_pattern(line)}\n" for line in shown)
    return re.fullmatch(wanted, "".join(f"{_plain(line)}\n" for line in printed)) is not None


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in _plain(line).split("…"))


def _plain(line: str) -> str:
    line = re.sub(r"# ([KMGT]i)?B\b", "# B", _FIGURE.sub("#", line))
    return " ".join(re.sub(r"─+", "─", line).split())
