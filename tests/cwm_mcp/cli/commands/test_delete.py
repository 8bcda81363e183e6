"""`cwm rm` and `cwm undo`: which windows go, who is asked first, and what comes back."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import DeleteArgs, Op, RestoreArgs, TrashArgs
from cwm_connector.protocol.trash import Trashed
from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from cwm_mcp.cli.sentences import Removed, said
from tests.cwm_mcp.canned import DELETED, CannedEngine, canned_engine_on_a_thread

UNTIL = "2026-01-24T09:30:00.000Z"
TRASHED: dict[str, Any] = {"window_name": "w", "kept_until": UNTIL, "space_freed_bytes": 0}
IN_TRASH = {
    "window_name": "w",
    "token_count": 700,
    "size_bytes": 12288,
    "deleted_at": "2026-01-23T09:30:00.000Z",
    "kept_until": UNTIL,
}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def cwm(*words: str, said: str = "") -> Result:
    return CliRunner().invoke(app, words, input=said)


@pytest.fixture
def engine(filled: Path, settings: Settings) -> Iterator[CannedEngine]:
    """Return an engine that lists the windows of `filled`, and what it was asked."""
    answer = json.loads(cwm("ls", "--order", "asc", "--json").stdout)
    with canned_engine_on_a_thread(settings, DELETE=DELETED, TRASH=TRASHED, LIST=answer) as canned:
        yield canned


def deleted(engine: CannedEngine) -> list[str]:
    return [asked.window_name for asked in engine.asked if isinstance(asked, DeleteArgs | TrashArgs)]


@pytest.mark.parametrize("said", ["", "n\n", "y\n"])
def test_nothing_is_deleted_where_nobody_can_be_asked(engine: CannedEngine, said: str) -> None:
    for words in (["stem"], ["stem", "branch"], ["*"]):
        ran = cwm("rm", *words, said=said)
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert "add --force" in ran.stderr
    assert deleted(engine) == []


def test_force_deletes_one_window_unasked(engine: CannedEngine) -> None:
    ran = cwm("rm", "w", "--force", "--json")
    assert json.loads(ran.stdout) == TRASHED
    assert deleted(engine) == ["w"]
    sentence = "Deleted w. It can be brought back until 2026-01-24 09:30.\nNext: cwm undo\n"
    assert cwm("rm", "w", "--force").stdout == sentence


def test_now_deletes_for_good(engine: CannedEngine) -> None:
    ran = cwm("rm", "w", "--force", "--now", "--json")
    assert json.loads(ran.stdout) == DELETED
    assert cwm("rm", "w", "--force", "--now").stdout.startswith("Deleted w for good and freed 12.0 KiB.\n")
    ran = cwm("rm", "stem*", "--force", "--now")
    assert ran.stdout.startswith("Deleted 2 windows for good and freed 24.0 KiB.\n")
    assert not [asked for asked in engine.asked if isinstance(asked, TrashArgs)]


def test_an_engine_without_a_trash_says_that_it_is_for_good(engine: CannedEngine) -> None:
    engine.answers[Op.TRASH] = {"window_name": "w", "kept_until": None, "space_freed_bytes": 12288}
    assert cwm("rm", "w", "--force").stdout.startswith("Deleted w for good and freed 12.0 KiB.\n")
    assert cwm("rm", "stem*", "--force").stdout.startswith("Deleted 2 windows for good and freed 24.0 KiB.\n")


def test_a_damaged_window_among_others_is_said_to_be_gone() -> None:
    gone = Trashed(window_name="v", kept_until=None, space_freed_bytes=12288)
    answer = said(Removed([Trashed(**TRASHED), gone], 12288))
    assert answer is not None and answer.sentence == (
        "Deleted 2 windows, 1 of them for good and freed 12.0 KiB. "
        "The others can be brought back until 2026-01-24 09:30."
    )


def test_one_command_deletes_under_one_id_and_the_next_under_another(engine: CannedEngine) -> None:
    cwm("rm", "stem*", "--force")
    cwm("rm", "w", "--force")
    first, second, third = [asked.command for asked in engine.asked if isinstance(asked, TrashArgs)]
    assert first == second != third


def test_undo_says_what_came_back_and_what_to_do_with_it(engine: CannedEngine) -> None:
    engine.answers[Op.RESTORE] = {"window_names": ["a", "b"]}
    assert cwm("undo").stdout == "Brought back 2 windows: a, b.\nNext: cwm thaw a\n"
    assert cwm("undo", "--quiet").stdout == "a\nb\n"
    assert json.loads(cwm("undo", "a", "--as", "c", "--json").stdout) == {"window_names": ["a", "b"]}
    asked = [args for args in engine.asked if isinstance(args, RestoreArgs)]
    assert asked == [RestoreArgs(), RestoreArgs(), RestoreArgs("a", "c")]
    assert cwm("undo", ".x").stderr.startswith("CWM-1002: ")


def test_the_trash_is_listed_with_sizes_and_times(engine: CannedEngine) -> None:
    engine.answers[Op.TRASH_LIST] = {"windows": [IN_TRASH]}
    shown = cwm("undo", "--list").stdout
    assert "1 window in the trash.\nNext: cwm undo, or cwm undo WINDOW\n" in shown
    assert "w 700 12.0 KiB 2026-01-23 09:30 2026-01-24 09:30" in " ".join(shown.split())
    assert json.loads(cwm("undo", "--list", "--json").stdout) == {"windows": [IN_TRASH]}
    engine.answers[Op.TRASH_LIST] = {"windows": []}
    assert cwm("undo", "--list").stdout == "The trash is empty.\n"
    engine.answers[Op.RESTORE] = CWMError(Code.WINDOW_NOT_FOUND, "the trash is empty, so there is nothing to undo")
    assert cwm("undo").stderr == "CWM-2002: the trash is empty, so there is nothing to undo\n"


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
    count = "1 window. It" if len(names) == 1 else f"{len(names)} windows. They"
    sentence = f"Deleted {count} can be brought back until 2026-01-24 09:30.\nNext: cwm undo\n"
    assert ran.stdout.startswith(sentence)
    assert ran.stdout.split("\n")[3].split() == ["window", "freed", "kept", "until"]
    assert ran.stdout.count("2026-01-24 09:30") == 1 + len(names)


@pytest.mark.parametrize(
    ("words", "code"),
    [([], 1003), (["--before", "soon"], 1003), (["stem", ".x"], 1002), (["stem", "nope"], 2002), (["no*"], 2002)],
)
def test_a_wrong_choice_deletes_nothing(engine: CannedEngine, words: list[str], code: int) -> None:
    ran = cwm("rm", *words, "--force")
    assert ran.stderr.startswith(f"CWM-{code}: ")
    assert deleted(engine) == []


def test_a_failure_in_the_middle_says_how_many_are_gone(engine: CannedEngine) -> None:
    engine.answers[Op.TRASH] = CWMError(Code.BACKEND, "Redis does not answer; start it")
    ran = cwm("rm", "stem*", "--force")
    assert ran.exit_code == 1
    assert "0 of 2 windows are deleted, but not 'stem'" in ran.stderr


def test_quiet_prints_the_names(engine: CannedEngine) -> None:
    assert cwm("rm", "stem*", "--dry-run", "--quiet").stdout.split() == ["stem", "stem-for-alice"]
    assert cwm("rm", "w", "--force", "--quiet").stdout == "w\n"
