"""A minute of the soak: clients, faults and a KV cache that is too small, and every answer compared.

The long form, against a vLLM without us and with bugs planted, is a part of `make torture`.
"""

import os
from pathlib import Path

import pytest

from tests.support.engine import Launch
from tests.torture.soak.soak import Outcome, Soak, rig, run

SECONDS = 40.0
ENOUGH_ANSWERS = 40
"""As many answers have always needed more blocks than there are."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def outcome(model: Path, launch: Launch) -> Outcome:
    """What one run found. CWM_TEST_SOAK_SEED chooses another than the one of every day."""
    soak = Soak(os.environ.get("CWM_TEST_SOAK_SEED", "1"), SECONDS, thaws=5)
    with rig(soak, launch) as on:
        found = run(soak, on)
    print(found.summary())
    return found


def test_every_answer_is_right_and_nothing_is_lost_leaked_or_hung(outcome: Outcome) -> None:
    assert [str(each) for each in outcome.violations] == [], outcome.summary()


def test_the_engine_was_short_of_blocks_and_everything_happened_to_it(outcome: Outcome) -> None:
    assert outcome.engine["restored tokens"] > 0
    happened = set(outcome.ledger.count)
    assert {"answer", "abort", "window.freeze", "window.thaw", "thaw compared"} <= happened, outcome.summary()
    assert outcome.faults, outcome.summary()
    if not outcome.engine["preemptions"]:
        answers = outcome.ledger.count["answer"]
        assert answers < ENOUGH_ANSWERS, outcome.summary()
        pytest.skip(f"nothing was preempted by {answers} answers in {SECONDS:.0f} s: the machine is too busy")
    if outcome.missing:
        pytest.skip("; ".join(outcome.missing))
