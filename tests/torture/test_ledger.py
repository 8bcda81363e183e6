"""ledger.py: what may stand in a store after a kill, and when a start's answer becomes a promise."""

from tests.torture.events import Asked, Done, Window
from tests.torture.ledger import Ledger
from tests.torture.texts import Run

W = Window("w", "s", (Run(100, 40),), "text", ("a",))
OTHER = Window("other", "s", (Run(100, 40),), "text", ("a",))


def killed_in_a_freeze() -> Ledger:
    ledger = Ledger()
    ledger.ask(Asked(1, "freeze", "w", W))
    ledger.kill()
    return ledger


def test_a_kill_in_a_freeze_leaves_it_undone_or_done() -> None:
    assert killed_in_a_freeze().states()["w"] == (None, W)


def test_what_a_start_showed_is_no_promise_until_it_has_acknowledged_something() -> None:
    ledger = killed_in_a_freeze()
    ledger.show({"w": 1})
    assert ledger.states()["w"] == (None, W)
    ledger.ask(Asked(2, "freeze", "other", OTHER))
    assert ledger.states()["w"] == (None, W)
    ledger.acknowledge(Done(2, size_bytes=1))
    assert ledger.states()["w"] == (W,)


def test_a_second_kill_before_that_leaves_both() -> None:
    ledger = killed_in_a_freeze()
    ledger.show({"w": 1})
    ledger.kill()
    ledger.ask(Asked(2, "freeze", "other", OTHER))
    ledger.acknowledge(Done(2, size_bytes=1))
    assert ledger.states()["w"] == (None, W)


def test_a_kill_in_a_deletion_of_what_may_not_be_there_leaves_the_same_two() -> None:
    ledger = killed_in_a_freeze()
    ledger.ask(Asked(2, "delete", "w", None))
    ledger.kill()
    assert ledger.states()["w"] == (None, W)


def test_acknowledgements_are_counted_by_what_was_done() -> None:
    ledger = killed_in_a_freeze()
    ledger.ask(Asked(2, "clone", "other", OTHER))
    ledger.acknowledge(Done(2))
    assert ledger.acknowledged == {"clone": 1}
