"""Clients on machines as they are: each exception of the environment is one line that says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cwm_mcp import serve
from tests.support.paths import ROOT

NOBODY = """
import os, pwd, runpy, sys
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a module as a user who has neither a name nor a home."""

ASCII: dict[str, Any] = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def ran(*words: str, cwd: Path = ROOT, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the variables. PYTHONPATH leads to the code from everywhere."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=60,
    )


def one_line(done: subprocess.CompletedProcess[str], returncode: int) -> str:
    """Return the only line on stderr, which carries a code."""
    (line,) = done.stderr.splitlines()
    assert done.returncode == returncode
    assert line.startswith("CWM-") and "; " in line
    return line


@pytest.mark.parametrize("module", ["cwm_mcp.cli", "cwm_mcp"])
def test_a_user_without_a_home_is_told_to_name_one(home: Path, module: str) -> None:
    words = ["ls"] if module == "cwm_mcp.cli" else []
    assert "absolute path" in one_line(ran("-c", NOBODY, module, *words, CWM_HOME=""), 2)


def test_a_hook_of_a_user_without_a_home_says_so_and_breaks_nothing(home: Path) -> None:
    event = json.dumps({"hook_event_name": "PreCompact", "session_id": "s"})
    done = ran("-c", NOBODY, "cwm_mcp.hooks", stdin=event, CWM_HOME="")
    assert done.returncode == 0
    assert "set CWM_HOME to an absolute path" in json.loads(done.stdout)["systemMessage"]


def test_a_user_without_a_name_gets_one_for_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "USER" not in serve.compose(serve.Build.CPU, "m", [], {}).environment
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert serve.compose(serve.Build.CPU, "m", [], {}).environment["USER"] == "uid54321"
    assert "USER" not in serve.compose(serve.Build.CPU, "m", [], {"USER": "me"}).environment


def test_an_empty_variable_counts_as_not_set(home: Path, tmp_path: Path) -> None:
    """Else an empty CWM_HOME is whatever folder a program is started in."""
    done = ran("-m", "cwm_mcp.cli", "doctor", cwd=tmp_path, CWM_HOME="", CWM_DISK_PATH="", HOME=str(tmp_path / "own"))
    assert str(tmp_path / "own" / ".cwm") in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_relative_home_in_a_folder_that_is_gone_is_one_line(home: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); from cwm_mcp.cli import main; main()"
    assert "relative" in one_line(ran("-c", code, "ls", CWM_HOME="here"), 2)


def test_a_relative_home_is_one_place_for_every_program_started_there(filled: Path) -> None:
    assert "stem" in ran("-m", "cwm_mcp.cli", "ls", cwd=filled.parent, CWM_HOME=filled.name).stdout


@pytest.mark.parametrize("words", [["ls"], ["ls", "--json"], ["show", "stem"]])
def test_a_locale_that_is_not_utf_8_shows_and_takes_any_language(filled: Path, words: list[str]) -> None:
    with_utf_8 = ran("-m", "cwm_mcp.cli", *words)
    without = ran("-m", "cwm_mcp.cli", *words, **ASCII)
    assert (without.returncode, without.stdout) == (0, with_utf_8.stdout)
    assert ran("-m", "cwm_mcp.cli", "ls", "--search", "é中文", **ASCII).returncode == 0


def test_a_path_that_is_no_text_is_still_a_path(home: Path, tmp_path: Path) -> None:
    place = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert ran("-m", "cwm_mcp.cli", "ls", CWM_HOME=place).stdout.endswith("0 of 0\n")


@pytest.mark.parametrize("words", [["ls"], ["ls", "--json"], ["doctor", "--json"]])
def test_output_to_a_full_disk_is_one_line(filled: Path, words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cwm_mcp.cli", *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line[:9]) == (1, "CWM-4001:")
    assert "No space left" in line


def test_closed_streams_end_nothing_with_a_traceback(filled: Path) -> None:
    command = f"{sys.executable} -m cwm_mcp.cli ls >&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    closed = subprocess.run(f"{sys.executable} -m cwm_mcp <&-", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert "stdin is closed" in one_line(closed, 2)


def test_a_socket_s_path_that_is_too_long_is_one_line(home: Path) -> None:
    assert "CWM_SOCKET" in one_line(ran("-m", "cwm_mcp.cli", "ls", CWM_HOME=f"/tmp/{'é' * 60}"), 2)


def test_a_read_only_home_is_one_line(home: Path) -> None:
    assert "choose another folder" in one_line(ran("-m", "cwm_mcp.cli", "ls", CWM_HOME="/proc/self/cwm"), 2)
