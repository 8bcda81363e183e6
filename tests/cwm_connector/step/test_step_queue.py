"""step/step_queue.py: a step gives other threads a share of its time, and what is left over waits for the next one."""

from collections.abc import Iterator, Sequence

import pytest

from cwm_connector.step.step_queue import STEP_SHARE_S, StepQueue


class Engine:
    """A queue in whose steps each part and each function takes a fourth of the share."""

    def __init__(self) -> None:
        self.now = 0.0
        self.woken = 0
        self.queue = StepQueue(self._wake, clock=lambda: self.now)
        self.done: list[str] = []

    def _wake(self) -> None:
        self.woken += 1

    def work(self, what: str) -> None:
        self.now += STEP_SHARE_S / 4
        self.done.append(what)

    def parts(self, name: str, count: int) -> Iterator[Sequence[int]]:
        for number in range(count):
            self.work(name)
            yield [number] if number % 2 else []

    def step(self) -> list[str]:
        """Return what one step has done."""
        self.done = []
        self.queue.drain()
        return self.done


def test_one_step_takes_no_more_parts_than_fit_into_its_share() -> None:
    engine = Engine()
    answer = engine.queue.collect(engine.parts("a", 9))
    assert engine.woken == 1 and engine.step() == ["a"] * 4
    assert engine.queue.wants_step and not answer.done()
    assert engine.step() == ["a"] * 4 and engine.step() == ["a"]
    assert answer.result(0) == [1, 3, 5, 7] and not engine.queue.wants_step


def test_functions_go_before_parts_and_each_collection_has_its_turn() -> None:
    engine = Engine()
    for name in ("a", "b"):
        engine.queue.collect(engine.parts(name, 4))
    engine.step()
    engine.queue.call(lambda: engine.work("call"))
    assert engine.step() == ["call", "b", "b", "b"]


def test_functions_that_do_not_fit_wait_for_the_next_step() -> None:
    engine = Engine()
    for number in range(6):
        engine.queue.call(lambda number=number: engine.work(str(number)))  # type: ignore[misc]
    assert engine.step() == ["0", "1", "2", "3"] and engine.queue.wants_step
    assert engine.step() == ["4", "5"] and not engine.queue.wants_step


def test_a_part_that_fails_ends_its_collection_alone() -> None:
    engine = Engine()

    def broken() -> Iterator[Sequence[int]]:
        yield [1]
        raise ValueError("no")

    failed, good = engine.queue.collect(broken()), engine.queue.collect(engine.parts("a", 2))
    engine.step()
    with pytest.raises(ValueError, match="no"):
        failed.result(0)
    assert good.result(0) == [1]


def test_a_collection_that_was_given_up_is_not_begun() -> None:
    engine = Engine()
    engine.queue.collect(engine.parts("a", 2)).cancel()
    assert engine.step() == [] and not engine.queue.wants_step
