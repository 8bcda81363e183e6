"""read_speed.py: each tier's speed comes from what was really read."""

import pytest

from cwm_connector.core.types import TierName
from cwm_connector.metrics import Metrics
from cwm_connector.step.read_speed import OUTDATED_S, ReadSpeed
from tests.support.clock import Clock

CPU, DISK = TierName.CPU, TierName.DISK


@pytest.fixture
def speed(clock: Clock) -> ReadSpeed:
    return ReadSpeed(Metrics(), clock)


def test_a_tier_that_was_never_read_counts_as_fast(speed: ReadSpeed) -> None:
    speed.measured({}, 1.0)
    assert not speed.knows(DISK) and speed.seconds_for(DISK, 1000) == 0 and not speed.is_outdated(DISK)


def test_the_newest_reading_counts_half(speed: ReadSpeed) -> None:
    speed.measured({DISK: 1000}, 1.0)
    assert speed.knows(DISK) and speed.seconds_for(DISK, 2000) == pytest.approx(2.0)
    speed.measured({DISK: 1000}, 3.0)
    assert speed.seconds_for(DISK, 1000) == pytest.approx(2.0)


def test_of_a_mixed_reading_the_slowest_tier_took_the_rest(speed: ReadSpeed) -> None:
    speed.measured({CPU: 1000}, 0.1)
    speed.measured({CPU: 1000, DISK: 1000}, 1.1)
    assert speed.seconds_for(DISK, 1000) == pytest.approx(1.0)
    assert speed.seconds_for(CPU, 1000) == pytest.approx(0.1)


def test_a_mixed_reading_that_was_faster_than_its_fast_part_says_nothing(speed: ReadSpeed) -> None:
    speed.measured({CPU: 1000}, 1.0)
    speed.measured({CPU: 1000, DISK: 1000}, 0.5)
    assert not speed.knows(DISK)


def test_a_measurement_grows_old(speed: ReadSpeed, clock: Clock) -> None:
    speed.measured({DISK: 1000}, 1.0)
    clock.now = OUTDATED_S - 1
    assert not speed.is_outdated(DISK)
    clock.now = OUTDATED_S
    assert speed.is_outdated(DISK)
    speed.measured({DISK: 1000}, 1.0)
    assert not speed.is_outdated(DISK)
