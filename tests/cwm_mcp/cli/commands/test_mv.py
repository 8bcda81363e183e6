"""`cwm mv` and `cwm freeze --replace`: what the engine is asked."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.protocol.calls import TagArgs
from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from tests.cwm_mcp.canned import CannedEngine, canned_engine_on_a_thread

RENAMED = {"window_name": "kickoff", "tags": ["a"], "description": ""}


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture
def engine(home: Path, settings: Settings) -> Iterator[CannedEngine]:
    with canned_engine_on_a_thread(settings, TAG=RENAMED) as canned:
        yield canned


@pytest.mark.parametrize("name", ["mv", "rename"])
def test_a_window_gets_another_name(engine: CannedEngine, name: str) -> None:
    ran = cwm(name, "w", "kickoff")
    assert ran.stdout.splitlines()[0] == "Renamed w to kickoff."
    assert engine.asked == [TagArgs("w", new_name="kickoff")]
    assert json.loads(cwm(name, "w", "kickoff", "--json").stdout) == RENAMED
    assert cwm(name, "w", "kickoff", "-q").stdout == "kickoff\n"


def test_a_name_that_cannot_be_is_refused(engine: CannedEngine) -> None:
    assert cwm("mv", "w", "a/b").exit_code == 2
    assert engine.asked == []
