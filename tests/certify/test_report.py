"""A run that restored nothing, or that differs anywhere, certifies nothing."""

from dataclasses import replace

from tests.certify.cases import cases
from tests.certify.compare import Difference
from tests.certify.report import Compared, Report

EQUAL = Difference(16, 16, 0.0)
GOOD = Compared(
    case=cases(1, 1)[0],
    tokens=651,
    restorable=640,
    restored=640,
    tiers=("disk",),
    to_hit=EQUAL,
    to_uninterrupted=EQUAL,
    proof="equal",
)


def test_a_run_with_nothing_wrong_has_no_faults() -> None:
    report = Report(asked=2, compared=[GOOD, replace(GOOD, proof=None)])
    assert report.faults == []
    assert "1280 tokens restored" in report.summary() and "FAULT" not in report.summary()


def test_equal_answers_certify_nothing_if_nothing_was_restored() -> None:
    assert "nothing was restored" in Report(asked=1, compared=[replace(GOOD, restored=0)]).faults
    assert Report(asked=0).faults == ["nothing was restored"]


def test_each_difference_is_a_fault_of_its_window() -> None:
    other = Difference(16, 16, 1e-6)
    for change in ({"to_hit": other}, {"to_uninterrupted": other}, {"proof": "none"}, {"restored": 512}):
        (fault,) = Report(asked=1, compared=[replace(GOOD, **change)]).faults
        assert "seed=1000" in fault


def test_windows_that_were_left_out_are_a_fault() -> None:
    assert Report(asked=3, compared=[GOOD]).faults == ["1 of 3 windows were compared"]
    assert Report(asked=1, compared=[GOOD], failures=["no proof"]).faults == ["no proof"]
