"""interpreter_lock.py: no thread keeps the interpreter's lock for long."""

import sys
from collections.abc import Iterator

import pytest

from cwm_connector.interpreter_lock import SWITCH_INTERVAL_S, shorten_turns


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_turns_are_shortened_and_never_lengthened() -> None:
    sys.setswitchinterval(0.005)
    shorten_turns()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S, rel=0.05)
    sys.setswitchinterval(SWITCH_INTERVAL_S / 2)
    shorten_turns()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S / 2, rel=0.05)
