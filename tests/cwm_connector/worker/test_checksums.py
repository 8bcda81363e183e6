"""checksums.py: work on several threads, or on the caller's."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from cwm_connector.worker.checksums import Checksums


@pytest.fixture
def checksums() -> Iterator[Checksums]:
    one = Checksums(3)
    yield one
    one.close()


def test_pieces_are_worked_on_at_the_same_time_and_concluded_in_order(checksums: Checksums) -> None:
    all_there = threading.Barrier(3, timeout=20)

    def work(number: int) -> int:
        all_there.wait()
        return number

    found = checksums.together([partial(work, number) for number in range(3)], tuple)
    assert found.result(20) == (0, 1, 2)


def test_a_piece_that_fails_is_told_when_no_piece_is_being_worked_on(checksums: Checksums) -> None:
    others = threading.Event()

    def fail() -> int:
        raise OSError("no")

    def wait() -> int:
        assert others.wait(20)
        return 1

    found = checksums.together([fail, wait], lambda numbers: sum(numbers))
    with pytest.raises(TimeoutError):
        found.result(0.05)
    others.set()
    with pytest.raises(OSError, match="no"):
        found.result(20)


def test_a_conclusion_that_fails_is_the_result(checksums: Checksums) -> None:
    def refuse(_: list[int]) -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        checksums.together([lambda: 1], refuse).result(20)
