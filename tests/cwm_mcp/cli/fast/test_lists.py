"""Lists that are answered without Typer are those that Typer's commands answer."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cwm_mcp.cli.app import app
from cwm_mcp.cli.fast.lists import COMMANDS, answered
from cwm_mcp.cli.fast.printing import errors_as_json

_FOR_TYPER = {"--help", "-h", "--passport"}
"""Options that are left to Typer."""


@pytest.fixture(autouse=True)
def _errors_as_text() -> None:
    errors_as_json.set(False)


@pytest.mark.parametrize(
    "words",
    [
        ["ls"],
        ["ls", "--json", "--limit", "2", "--sort=size", "--order", "asc"],
        ["ls", "-q", "-t", "draft", "--tag", "x"],
        ["ls", "--search", "stem", "--offset=1"],
        ["ls", "--sort", "colour"],
        ["ls", "--limit", "0", "--json"],
        ["show", "stem"],
        ["show", "stem", "--blocks", "--json"],
        ["show", "nothing"],
        ["show", "--json", "--session", "unknown"],
        ["sessions"],
        ["sessions", "--state", "frozen", "--quiet"],
    ],
)
def test_the_answer_is_typers(filled: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    expected = CliRunner().invoke(app, words)
    errors_as_json.set(False)
    code = answered(words)
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err) == (expected.exit_code, expected.stdout, expected.stderr)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["thaw", "w"],
        ["list"],
        ["ls", "--help"],
        ["ls", "--colour", "red"],
        ["ls", "--tag"],
        ["ls", "--limit", "many"],
        ["ls", "--search", "-x"],
        ["ls", "more"],
        ["show", "stem", "other"],
        ["show", "stem", "--passport"],
        ["show", "--", "stem"],
    ],
)
def test_what_needs_a_closer_look_is_left_to_typer(filled: Path, words: list[str]) -> None:
    assert answered(words) is None


def test_a_setting_that_cannot_work_exits_with_2(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CWM_DISK_CACHE_GB", "0")
    assert answered(["ls"]) == 2
    assert "CWM_DISK_CACHE_GB" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_the_command_is_known(name: str) -> None:
    group: Any = typer.main.get_command(app)
    options = {
        word
        for each in group.commands[name].params
        if each.param_type_name == "option"
        for word in (*each.opts, *each.secondary_opts)
    }
    command = COMMANDS[name]
    known = {*command.texts, *command.numbers, *command.lists, *command.flags}
    assert options - _FOR_TYPER == known
