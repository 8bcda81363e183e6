"""campaign.py: how a child's end is judged."""

import io
import signal

import pytest

from tests.torture.campaign import _Watch
from tests.torture.events import Asked, Done, Ended, Event, Looked, Started, Step
from tests.torture.ledger import Ledger
from tests.torture.tally import Tally

_EXIT_1 = 1 << 8
"""The status of os.waitpid after `os._exit(1)`."""
WORK = (Started(), Looked(), Asked(1, "thaw"), Done(1))


def after(*told: Event, status: int) -> Tally:
    """Return what is counted after a child that told these events ended with this status of os.waitpid."""
    tally = Tally()
    watch = _Watch(Ledger(), tally, "here", io.BytesIO())
    for event in told:
        watch._take(event)
    watch._end(status)
    return tally


@pytest.mark.parametrize("late", [(), (Step(1, "chunks read and verified"),)])
def test_an_end_in_order_is_one_even_if_something_is_told_behind_it(late: tuple[Event, ...]) -> None:
    tally = after(*WORK, Ended(), *late, status=0)
    assert (tally.orderly, tally.violations) == (1, [])


def test_a_child_that_ends_by_itself_has_failed() -> None:
    tally = after(*WORK, status=0)
    assert tally.orderly == 0 and "the child ended by itself" in str(tally.violations[0])


def test_a_child_that_fails_while_it_closes_its_store_has_failed() -> None:
    assert after(*WORK, Ended(), status=_EXIT_1).violations


def test_a_kill_is_counted_with_what_was_under_way() -> None:
    tally = after(*WORK, Asked(2, "delete"), status=signal.SIGKILL)
    assert tally.kills == 1 and tally.phases == {"delete": 1}
