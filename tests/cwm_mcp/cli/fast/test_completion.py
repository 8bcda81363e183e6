"""Names are completed without Typer as Typer would complete them."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.types import Micros
from cwm_connector.settings import Settings
from cwm_mcp.cli import shell_completion
from cwm_mcp.cli.app import app
from cwm_mcp.cli.fast.completion import NAMES, REPEATED, complete_or_none
from tests.cwm_mcp.canned import canned_engine_on_a_thread
from tests.support.paths import ROOT

SHELLS = ("complete_bash", "complete_zsh", "complete_fish")
SESSIONS: dict[str, Any] = {
    "sessions": [
        {
            "session_id": "proj:1",
            "state": "active",
            "model": "m",
            "token_count": 1,
            "heads": 2,
            "cached_tokens": None,
            "title": None,
            "auto_freeze_at": None,
            "created_at": None,
            "last_active_at": None,
            "windows": [],
            "head_names": ["a", "b"],
        }
    ],
    "total": 1,
    "has_more": False,
}


def typed(shell: str, line: str) -> dict[str, str]:
    """Return the variables with which a shell asks for the completion of a line."""
    words = line.split()
    number = len(words) if line.endswith(" ") else len(words) - 1
    return {
        "_CWM_COMPLETE": shell,
        "COMP_WORDS": line,
        "COMP_CWORD": str(number),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }


def completed_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str]
) -> tuple[int | None, str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return complete_or_none(), capsys.readouterr().out


def completed_by_typer(variables: dict[str, str]) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-c", "from cwm_mcp.cli.app import main; main()"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.returncode, ran.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_what_typer_prints(
    filled: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shell: str,
) -> None:
    with canned_engine_on_a_thread(settings, SESSIONS=SESSIONS):
        for line in ("cwm thaw st", "cwm rm stem ", "cwm thaw zzz", "cwm freeze proj"):
            variables = typed(shell, line)
            found = completed_at_once(monkeypatch, capsys, variables)
            assert found == completed_by_typer(variables), line
    assert "proj" in found[1] and "/b" in found[1]


def test_undo_is_offered_what_was_deleted(
    filled: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(SqliteCatalog.open(settings.catalog_path)) as catalog:
        for number, name in enumerate(("stem-for-alice", "branch")):
            catalog.trash.put(name, "rm", Micros(number))
    assert completed_at_once(monkeypatch, capsys, typed("complete_bash", "cwm undo ")) == (
        0,
        "branch\nstem-for-alice\n",
    )
    assert completed_at_once(monkeypatch, capsys, typed("complete_bash", "cwm undo st")) == (0, "stem-for-alice\n")
    assert completed_at_once(monkeypatch, capsys, typed("complete_bash", "cwm thaw ")) == (0, "stem\n")


def test_fish_learns_whether_there_are_names(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert completed_at_once(monkeypatch, capsys, typed("complete_fish", "cwm thaw st") | asked) == (0, "")
    assert completed_at_once(monkeypatch, capsys, typed("complete_fish", "cwm thaw zz") | asked) == (1, "")


@pytest.mark.parametrize(
    "line", ["cwm ", "cwm th", "cwm ls --so", "cwm thaw stem ", "cwm ls --tag ", "cwm thaw 'st", "cwm health "]
)
@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_no_name_is_left_to_typer(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, line: str
) -> None:
    assert completed_at_once(monkeypatch, capsys, typed(shell, line)) == (None, "")


def test_the_table_has_the_names_that_the_commands_take() -> None:
    group: Any = typer.main.get_command(app)
    takes_names = {
        name
        for name, command in group.commands.items()
        for each in command.params
        if each.param_type_name == "argument" and each._custom_shell_complete is not None
    }
    assert takes_names - {"health"} == {*NAMES, *REPEATED}
    assert NAMES["freeze"] == (shell_completion.sessions,)
