"""The torture in its short form: over 200 kills and power cuts, and every known bug planted once.

The long form is `make torture`.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.engine import ROOT
from tests.torture.faults import FAULTS

LOOPS = 220
_LIMIT_S = 960
"""Two minutes where nothing else runs; this is for a machine that has much else to do."""

pytestmark = pytest.mark.timeout(_LIMIT_S + 30)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run of the command found."""
    path = tmp_path_factory.mktemp("torture") / "report.json"
    command = [sys.executable, "-m", "tests.torture", "--loops", str(LOOPS), "--acts", "14", "--windows", "6"]
    done = subprocess.run(
        [*command, "--minutes", "15", "--report", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S
    )
    print(done.stdout[-8000:], done.stderr[-4000:])
    found: dict[str, Any] = json.loads(path.read_text())
    return found | {"status": done.returncode}


def test_nothing_acknowledged_is_lost_corrupt_or_made_up(report: dict[str, Any]) -> None:
    assert report["tally"]["violations"] == []
    assert set(report["tally"]["found"].values()) == {0}


def test_over_two_hundred_children_were_killed_and_what_they_left_was_looked_at(report: dict[str, Any]) -> None:
    tally = report["tally"]
    assert tally["loops"] == LOOPS and tally["kills"] >= 200
    assert tally["windows_checked"] > LOOPS
    assert tally["acknowledged"]["freeze"] > LOOPS
    acts = {"freeze", "delete", "clone", "tag", "thaw", "collect"}
    assert acts <= {act for phase in tally["phases"] for part in phase.split("+") for act in [part.split(" ")[0]]}


def test_every_act_was_acknowledged_many_times(report: dict[str, Any]) -> None:
    acts = {"freeze", "delete", "trash", "undo", "clone", "tag", "thaw", "collect", "verify"}
    if report["redis"]:
        acts |= {"demote", "restore"}
    acknowledged = report["tally"]["acknowledged"]
    assert {act for act in acts if acknowledged.get(act, 0) >= 10} == acts, acknowledged


def test_power_was_cut_as_well(report: dict[str, Any]) -> None:
    if not report["power_cuts"]:
        pytest.skip("no C compiler (cc, gcc): power cuts can't be modelled")
    assert report["tally"]["cuts"] == LOOPS // 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_bug_is_found(report: dict[str, Any], name: str) -> None:
    if name not in report["faults"]:
        pytest.skip("no C compiler (cc, gcc) or no redis-server: this bug shows only with it")
    assert report["faults"][name], "the harness did not find the bug that was planted"


def test_the_command_says_by_its_status_that_all_is_well(report: dict[str, Any]) -> None:
    assert report["status"] == 0
