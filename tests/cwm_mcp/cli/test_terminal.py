"""Sessions in a terminal, recorded as text: 80 and 200 columns, a pipe, with colour and without.

The recordings are in tests/cwm_mcp/cli/recorded. `RECORD_TERMINAL=1 pytest tests/cwm_mcp/cli/test_terminal.py` writes
them again. Read the difference before you commit it.
"""

import fcntl
import os
import re
import struct
import subprocess
import sys
import tempfile
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cwm_mcp import homes
from tests.support.paths import ROOT

RECORDED = Path(__file__).parent / "recorded"
COMMANDS = ("ls", "sessions", "show branch", "rm stem", "ls --sort foo", "cat stem --tail 3")
_VOLATILE = (
    (re.compile(rf"{re.escape(tempfile.gettempdir())}/cwm-\w+"), "HOME"),
    (re.compile(r"\d+ (d|h|min|s) old"), "N d old"),
    (re.compile(r"\r"), ""),
    (re.compile("\x1b"), "␛"),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
)


@pytest.fixture
def many(filled: Path) -> Path:
    """Return a home with windows whose names and tags are long."""
    homes.clones(filled, "stem", 3)
    return filled


def _surroundings() -> dict[str, str]:
    """Return the environment without the size that it may give a terminal."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}


def in_a_terminal(command: str, columns: int, **environment: str) -> str:
    outer, inner = os.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "cwm_mcp.cli", *command.split()],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=inner,
        stderr=inner,
        env={**_surroundings(), "TERM": "xterm-256color", "TZ": "UTC", **environment},
    ):
        os.close(inner)
        shown = b""
        with suppress(OSError):  # the last process has closed the terminal
            while part := os.read(outer, 4096):
                shown += part
    os.close(outer)
    return shown.decode()


def in_a_pipe(command: str) -> str:
    words = [sys.executable, "-m", "cwm_mcp.cli", *command.split()]
    ran = subprocess.run(
        words,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TZ": "UTC"},
    )
    return ran.stdout


def compare(name: str, shown: dict[str, str]) -> None:
    text = "".join(f"$ cwm {command}\n{output}\n" for command, output in shown.items())
    for volatile, instead in _VOLATILE:
        text = volatile.sub(instead, text)
    path = RECORDED / f"{name}.txt"
    if os.environ.get("RECORD_TERMINAL"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_shows_what_was_recorded_and_no_line_is_wider(many: Path, columns: int) -> None:
    shown = {command: in_a_terminal(command, columns, NO_COLOR="1") for command in COMMANDS}
    for command in ("ls", "sessions"):
        table = re.sub(r"\x1b\[[0-9;]*m", "", shown[command]).splitlines()
        assert all(len(line) <= columns for line in table)
    rows = re.sub(r"\x1b\[[0-9;]*m", "", shown["ls"]).splitlines()
    assert len([row for row in rows if row.startswith(("clone-", "stem", "branch"))]) == 6 == len(rows) - 1
    compare(f"{columns}-columns", shown)


def test_a_pipe_gets_no_colour_and_no_line_is_wrapped(many: Path) -> None:
    shown = {command: in_a_pipe(command) for command in COMMANDS}
    assert "\x1b" not in "".join(shown.values())
    compare("pipe", shown)


def test_colour_is_only_for_terminals_that_want_it(many: Path) -> None:
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", in_a_terminal("health", 80))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", in_a_terminal("health", 80, NO_COLOR="1"))
