"""`cwm rm`: which windows go, and who is asked first."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import DeleteArgs, Op
from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from tests.cwm_mcp.canned import DELETED, CannedEngine, canned_engine_on_a_thread


def cwm(*words: str, said: str = "") -> Result:
    return CliRunner().invoke(app, words, input=said)


@pytest.fixture
def engine(filled: Path, settings: Settings) -> Iterator[CannedEngine]:
    """Return an engine that lists the windows of `filled`, and what it was asked."""
    answer = json.loads(cwm("ls", "--order", "asc", "--json").stdout)
    with canned_engine_on_a_thread(settings, DELETE=DELETED, LIST=answer) as canned:
        yield canned


def deleted(engine: CannedEngine) -> list[str]:
    return [asked.window_name for asked in engine.asked if isinstance(asked, DeleteArgs)]


@pytest.mark.parametrize("said", ["", "n\n", "y\n"])
def test_nothing_is_deleted_where_nobody_can_be_asked(engine: CannedEngine, said: str) -> None:
    for words in (["stem"], ["stem", "branch"], ["*"]):
        ran = cwm("rm", *words, said=said)
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert "add --force" in ran.stderr
    assert deleted(engine) == []


def test_force_deletes_one_window_unasked(engine: CannedEngine) -> None:
    ran = cwm("rm", "w", "--force", "--json")
    assert json.loads(ran.stdout) == DELETED
    assert deleted(engine) == ["w"]
    assert cwm("rm", "w", "--force").stdout.startswith("Deleted w and freed 12.0 KiB.\n")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["stem", "branch"], ["stem", "branch"]),
        (["stem*"], ["stem", "stem-for-alice"]),
        (["--tag", "debug"], ["branch"]),
        (["--tag", "project-x", "--before", "2026-01-02"], ["stem"]),
        (["*alice", "branch", "--before", "2026-01-02T12:00:00"], ["branch"]),
    ],
)
def test_names_patterns_tags_and_times_choose(engine: CannedEngine, words: list[str], names: list[str]) -> None:
    listed = json.loads(cwm("rm", *words, "--dry-run", "--json").stdout)
    assert sorted(each["name"] for each in listed["windows"]) == sorted(names)
    assert deleted(engine) == []
    ran = cwm("rm", *words, "--force")
    assert ran.exit_code == 0, ran.output
    assert sorted(deleted(engine)) == sorted(names)
    assert ran.stdout.startswith(f"Deleted {len(names)} windows and freed {12 * len(names)}.0 KiB.\n")


@pytest.mark.parametrize(
    ("words", "code"),
    [([], 1003), (["--before", "soon"], 1003), (["stem", ".x"], 1002), (["stem", "nope"], 2002), (["no*"], 2002)],
)
def test_a_wrong_choice_deletes_nothing(engine: CannedEngine, words: list[str], code: int) -> None:
    ran = cwm("rm", *words, "--force")
    assert ran.stderr.startswith(f"CWM-{code}: ")
    assert deleted(engine) == []


def test_a_failure_in_the_middle_says_how_many_are_gone(engine: CannedEngine) -> None:
    engine.answers[Op.DELETE] = CWMError(Code.BACKEND, "Redis does not answer; start it")
    ran = cwm("rm", "stem*", "--force")
    assert ran.exit_code == 1
    assert "0 of 2 windows are deleted, but not 'stem'" in ran.stderr


def test_quiet_prints_the_names(engine: CannedEngine) -> None:
    assert cwm("rm", "stem*", "--dry-run", "--quiet").stdout.split() == ["stem", "stem-for-alice"]
    assert cwm("rm", "w", "--force", "--quiet").stdout == "w\n"
