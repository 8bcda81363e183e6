"""`cwm help`, `-h`, and the names that people type for commands."""

import pytest
from typer.testing import CliRunner, Result

from cwm_mcp.cli.app import app
from cwm_mcp.cli.group import ALIASES


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, words, prog_name="cwm")


@pytest.mark.parametrize("word", ["4003", "CWM-4003", "cwm-4003"])
def test_a_code_is_explained(word: str) -> None:
    said = cwm("help", word).stdout
    assert said.startswith("CWM-4003: The disk or the disk tier is full.")
    assert "cwm rm" in said


def test_an_unknown_code_lists_the_known_ones_and_an_unknown_word_is_refused() -> None:
    ran = cwm("help", "4999")
    assert ran.exit_code == 2 and "4003" in ran.stderr
    assert cwm("help", "frobnicate").exit_code == 2


def test_help_and_its_short_form_show_what_the_long_option_shows() -> None:
    assert cwm("help", "rm").stdout.split() == cwm("rm", "--help").stdout.split()
    assert cwm("rm", "-h").stdout == cwm("rm", "--help").stdout
    assert cwm("-h").stdout == cwm("--help").stdout
    assert "─ Windows ─" in cwm("help").stdout


@pytest.mark.parametrize("alias", ["delete", "restore", "status", "save", "list", "log", "ps", "fork"])
def test_what_people_type_is_understood(alias: str) -> None:
    explained = cwm(ALIASES[alias], "--help").stdout.split("\n\n", 1)[0].split()[-8:]
    assert cwm(alias, "--help").exit_code == 0
    assert explained and cwm(alias, "--help").stdout.split()[3:] == cwm(ALIASES[alias], "--help").stdout.split()[3:]
