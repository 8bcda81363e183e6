"""A machine's clock that jumps changes no duration and no order."""

import logging

import pytest

from cwm_connector.core.clock import SteadyClock

DAY = 24 * 3600 * 10**9


class Machine:
    wall = 1_800_000_000 * 10**9
    since_boot = 5 * 10**9

    def passes(self, ns: int) -> None:
        self.wall += ns
        self.since_boot += ns


@pytest.mark.parametrize("jump", [DAY, -DAY, -40 * 365 * DAY])
def test_a_jump_changes_no_time_and_is_said_once(jump: int, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = SteadyClock(lambda: machine.wall, lambda: machine.since_boot)
    began = clock.now_ns()
    machine.passes(10**9)
    with caplog.at_level(logging.WARNING):
        machine.wall += jump
        assert clock.now_ns() == began + 10**9
        machine.passes(10**9)
        assert clock.now_ns() == began + 2 * 10**9
    (line,) = caplog.messages
    assert "nothing is lost" in line


def test_small_corrections_are_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = SteadyClock(lambda: machine.wall, lambda: machine.since_boot)
    machine.wall += 30 * 10**9
    clock.now_ns()
    assert not caplog.messages


def test_the_time_at_the_start_is_the_machine_s() -> None:
    machine = Machine()
    assert SteadyClock(lambda: machine.wall, lambda: machine.since_boot).now_ns() == machine.wall
