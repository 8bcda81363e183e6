"""plan.py: kills come at every kind of moment, and the trigger goes off at the one that was drawn."""

from collections import Counter
from random import Random

from tests.torture.events import Asked, Done, Step
from tests.torture.plan import TARGETS, Plan, Trigger, draw


def test_over_many_loops_every_target_is_drawn_and_few_ends_are_orderly() -> None:
    plans = [draw(f"1/{loop}", 30, TARGETS) for loop in range(1000)]
    assert {plan.target for plan in plans} == {None, *TARGETS}
    assert 20 < sum(plan.orderly for plan in plans) < 120
    assert Counter(plan.torn for plan in plans)[True] > 300


def test_the_same_seed_draws_the_same_plan() -> None:
    first, second = draw("7/3", 30, TARGETS), draw("7/3", 30, TARGETS)
    assert (first.target, first.after, first.delay_s) == (second.target, second.after, second.delay_s)


def test_the_trigger_waits_for_its_target_after_enough_acknowledgements() -> None:
    trigger = Trigger(Plan(False, "captured", 2, 0.5, Random(1), False), now=0.0)
    trigger.see(Step(1, "captured"), 1.0)
    trigger.see(Done(1), 2.0)
    trigger.see(Done(2), 3.0)
    trigger.see(Asked(3, "delete"), 4.0)
    assert trigger.at is None
    trigger.see(Step(4, "captured"), 5.0)
    assert trigger.at == 5.5


def test_without_a_target_time_alone_decides() -> None:
    assert Trigger(Plan(False, None, 0, 0.5, Random(1), False), now=1.0).at == 1.5


def test_an_orderly_end_is_never_cut_short() -> None:
    trigger = Trigger(Plan(True, None, 0, 0.0, Random(1), False), now=1.0)
    trigger.see(Done(1), 2.0)
    assert trigger.at is None
