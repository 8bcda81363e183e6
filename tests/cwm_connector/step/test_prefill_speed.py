"""prefill_speed.py: the rate is that of the steps that were measured, and unknown before."""

import pytest

from cwm_connector.step.prefill_speed import FIRST_RANGE, PREFILL_TOKENS, PrefillSpeed
from tests.support.clock import Clock


@pytest.fixture
def prefill_speed(clock: Clock) -> PrefillSpeed:
    return PrefillSpeed(clock)


def step(prefill_speed: PrefillSpeed, clock: Clock, tokens: int, seconds: float, position: int = 0) -> None:
    prefill_speed.step_planned(tokens, position)
    clock.now += seconds
    prefill_speed.step_done()


def test_nothing_is_known_before_the_first_prompt(prefill_speed: PrefillSpeed, clock: Clock) -> None:
    assert prefill_speed.seconds_for(1000) is None
    step(prefill_speed, clock, PREFILL_TOKENS - 1, 0.1)  # an answer's
    assert prefill_speed.seconds_for(1000) is None


def test_the_rate_is_tokens_over_seconds_of_all_measured_steps(prefill_speed: PrefillSpeed, clock: Clock) -> None:
    step(prefill_speed, clock, 2000, 1.0)
    step(prefill_speed, clock, 1000, 2.0)
    assert prefill_speed.seconds_for(500) == pytest.approx(0.5)


def test_the_time_between_requests_is_nobody_s(prefill_speed: PrefillSpeed, clock: Clock) -> None:
    for _ in range(2):
        step(prefill_speed, clock, 1000, 1.0)
        clock.now += 60
    assert prefill_speed.seconds_for(1000) == pytest.approx(1.0)


def test_a_step_planned_ahead_begins_when_the_one_before_it_ends(prefill_speed: PrefillSpeed, clock: Clock) -> None:
    prefill_speed.step_planned(1000)
    prefill_speed.step_planned(1000)
    for _ in range(2):
        clock.now += 1.0
        prefill_speed.step_done()
    assert prefill_speed.seconds_for(1000) == pytest.approx(1.0)


def test_a_step_without_tokens_is_not_waited_for(prefill_speed: PrefillSpeed, clock: Clock) -> None:
    prefill_speed.step_planned(0)
    clock.now += 60
    step(prefill_speed, clock, 1000, 1.0)
    assert prefill_speed.seconds_for(1000) == pytest.approx(1.0)


def test_outputs_that_were_never_told_spoil_no_later_measurement(prefill_speed: PrefillSpeed, clock: Clock) -> None:
    for _ in range(5):
        prefill_speed.step_planned(1000)
    clock.now += 60
    step(prefill_speed, clock, 1000, 1.0)
    assert prefill_speed.seconds_for(1000) == pytest.approx(1.0)


def test_old_steps_are_forgotten(prefill_speed: PrefillSpeed, clock: Clock) -> None:
    step(prefill_speed, clock, 1000, 100.0)
    for _ in range(32):
        step(prefill_speed, clock, 1000, 1.0)
    assert prefill_speed.seconds_for(1000) == pytest.approx(1.0)


def test_tokens_far_into_a_prompt_have_a_speed_of_their_own(prefill_speed: PrefillSpeed, clock: Clock) -> None:
    step(prefill_speed, clock, 1000, 1.0, position=FIRST_RANGE - 1)
    step(prefill_speed, clock, 1000, 3.0, position=FIRST_RANGE)
    assert prefill_speed.seconds_for(1000) == pytest.approx(1.0)
    assert prefill_speed.seconds_for(1000, first=FIRST_RANGE) == pytest.approx(3.0)
    assert prefill_speed.seconds_for(1000, first=FIRST_RANGE - 500) == pytest.approx(2.0)


def test_a_position_without_a_measurement_is_taken_for_the_nearest_one(
    prefill_speed: PrefillSpeed, clock: Clock
) -> None:
    step(prefill_speed, clock, 1000, 1.0)
    assert prefill_speed.seconds_for(1000, first=1_000_000) == pytest.approx(1.0)
    step(prefill_speed, clock, 1000, 3.0, position=4 * FIRST_RANGE)
    assert prefill_speed.seconds_for(1000, first=FIRST_RANGE) == pytest.approx(1.0)
    assert prefill_speed.seconds_for(1000, first=2 * FIRST_RANGE) == pytest.approx(3.0)
    assert prefill_speed.seconds_for(1000, first=10**9) == pytest.approx(3.0)
