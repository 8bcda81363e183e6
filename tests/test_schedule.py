"""tests/support/schedule.py: the tests of one vLLM run in one worker, and the slow groups start first."""

import random

from tests.support import schedule
from tests.support.engine import ROOT
from tests.support.schedule import group_of, rank_of

ENGINES = ROOT / "tests" / "engine"


def of_engine(name: str, test: str = "test_a") -> str:
    return group_of(f"tests/engine/{name}::{test}")


def test_the_tests_of_one_engine_are_one_group_and_every_other_file_is_its_own() -> None:
    assert of_engine("test_freeze.py") == of_engine("test_restart.py", "test_b[1]") == schedule.SHARED
    assert of_engine("test_clients.py", "test_b[codex]") == of_engine("test_back_without_asking.py")
    assert of_engine("test_guide_workflows.py", "test_b[small]") == schedule.SHARED
    assert of_engine("test_guide_workflows.py", "test_b[gemma3]") != schedule.SHARED
    assert of_engine("test_sharing.py") != of_engine("test_soak.py")
    assert group_of("tests/torture/test_plan.py::test_a[x::y]") == "tests/torture/test_plan.py"


def test_the_groups_that_take_minutes_are_sorted_to_the_front() -> None:
    tests = ["tests/a.py::t", "tests/engine/test_freeze.py::t", "tests/torture/test_torture.py::t", "tests/z.py::t"]
    random.Random(1).shuffle(tests)
    assert sorted(tests, key=rank_of)[:2] == ["tests/engine/test_freeze.py::t", "tests/torture/test_torture.py::t"]


def test_every_named_file_is_there() -> None:
    for name in (*schedule.OF_UNASKED, *schedule.WITH_THEIR_OWN, schedule.WORKFLOWS):
        assert (ENGINES / name).exists(), f"{name} was moved: name it in tests/support/schedule.py as it is called now"
    assert (ROOT / schedule.TORTURE).exists()
