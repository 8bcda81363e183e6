"""tests/support/schedule.py: the tests with a real vLLM run in one worker, and the slow groups start first."""

import random

from tests.support import schedule
from tests.support.engine import ROOT
from tests.support.schedule import group_of, rank_of


def test_all_tests_with_a_real_engine_are_one_group_and_every_other_file_is_its_own() -> None:
    assert group_of("tests/engine/test_freeze.py::test_a") == group_of("tests/engine/test_restart.py::test_b[1]")
    assert group_of("tests/engine/test_freeze.py::test_a") == group_of("tests/engine/test_sharing.py::test_b")
    assert group_of("tests/torture/test_plan.py::test_a[x::y]") == "tests/torture/test_plan.py"


def test_the_groups_that_take_minutes_are_sorted_to_the_front() -> None:
    tests = ["tests/a.py::t", "tests/engine/test_freeze.py::t", "tests/torture/test_torture.py::t", "tests/z.py::t"]
    random.Random(1).shuffle(tests)
    assert sorted(tests, key=rank_of)[:2] == ["tests/engine/test_freeze.py::t", "tests/torture/test_torture.py::t"]


def test_every_named_group_is_there() -> None:
    for group in schedule._FIRST:
        assert (ROOT / group).exists(), f"{group} was moved: name it in tests/support/schedule.py as it is called now"
