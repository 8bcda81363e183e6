"""What the demo prints at its end can be typed as it stands, and the engine that it leaves running ends by its id."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from demo.next_steps import COMMANDS, print_kept, print_next
from demo.story import RESUMED, STEM
from tests.support.engine import ROOT, Engine, Process


def printed(console: Console) -> list[str]:
    """Return the indented lines, which are the commands."""
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    return [line.removeprefix("    ") for line in lines if line.startswith("    ")]


def narrow_console() -> Console:
    """Return a console that is narrower than the commands."""
    return Console(file=StringIO(), width=60)


def stand_in(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Start a small server in vLLM's place that answers /health, and that SIGTERM ends."""
    (log.parent / "health").write_text("up\n")
    port = environment["CWM_VLLM_URL"].rpartition(":")[2]
    serve = (sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", str(log.parent))
    return subprocess.Popen(serve, stderr=subprocess.DEVNULL, start_new_session=True)


def as_printed(line: str) -> list[str]:
    """Return the words of a line that begins with the demo's own `cwm`, for the Python that runs this test."""
    program, *words = shlex.split(line)
    assert program == ".venv/bin/cwm"
    return [sys.executable, "-m", "cwm_mcp.cli", *words]


def wait_until_gone(engine: Engine, timeout_s: float = 10) -> None:
    """Return when the engine has no process any more, and fail if it keeps one."""
    deadline = time.monotonic() + timeout_s
    while engine.processes():
        assert time.monotonic() < deadline, "a process outlived the printed command"
        time.sleep(0.02)


def test_the_three_commands_are_whole_lines() -> None:
    console = narrow_console()
    print_next(console)
    assert printed(console) == list(COMMANDS)
    assert len(COMMANDS) == 3


def test_the_commands_agree_and_are_understood() -> None:
    serve, curl, freeze = COMMANDS
    command = as_printed(serve)
    shown = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    body = json.loads(shlex.split(curl)[-1])
    assert body["model"] in shown.split()
    assert f"X-Session-ID: {as_printed(freeze)[-1]}" in shlex.split(curl)


def test_the_kept_engine_ends_by_the_printed_id_and_its_folder_goes(request: pytest.FixtureRequest) -> None:
    engine = Engine(launch=stand_in)
    request.addfinalizer(engine.close)
    engine.start()
    console = narrow_console()
    print_kept(console, engine)
    export, *tries, kill, remove = printed(console)
    assert export == f"export CWM_HOME={engine.home} CWM_VLLM_URL={engine.url}"
    windows = {words[-1] for words in map(as_printed, tries) if words[3] == "freeze"} | {STEM}
    for line in tries:
        _, _, _, command, *words = as_printed(line)
        assert set(words) <= windows | {RESUMED}, line
        assert len(set(words)) == len(words) == {"freeze": 2, "diff": 2, "chat": 1}.get(command, 0)
        assert subprocess.run([*as_printed(line), "--help"], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    subprocess.run(kill, shell=True, check=True)
    wait_until_gone(engine)
    subprocess.run(remove, shell=True, check=True)
    assert not engine.folder.exists()
