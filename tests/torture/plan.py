"""When a child is killed: at a random time, or a moment after it began, or got to a step of, one kind of operation."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.torture.events import Asked, Done, Event, Looked, Started, Step

TARGETS: Final = ("freeze", "captured", "chunks stored", "delete", "clone", "tag", "thaw", "collect", "verify")
WITH_REDIS: Final = (*TARGETS, "demote", "restore")
_JITTER_S: Final = 0.02
_LOOKING_S: Final = 0.3
_ACT_S: Final = 0.02
"""About what an acknowledgement takes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`target`: the act or step that is waited for, None: time alone decides."""

    orderly: bool
    """No kill: the child does some work and closes the store."""
    target: str | None
    after: int
    """Acknowledgements before the target counts."""
    delay_s: float
    """From the target to the kill; without a target from the fork."""
    dice: Random
    """For a power cut that leaves some of what was not yet durable."""
    torn: bool
    """Whether it is such a one; else nothing is left that was not durable."""


def draw(seed: str, acts: int, targets: Sequence[str]) -> Plan:
    """A child is let live for `acts` acknowledgements at most, or about so."""
    dice = Random(seed)
    torn, kind = dice.random() < 0.5, dice.random()
    if kind < 0.06:
        return Plan(True, None, 0, 0, dice, torn)
    if kind < 0.16:  # somewhere in recovery, or while everything is looked at
        return Plan(False, None, 0, dice.uniform(0, _LOOKING_S), dice, torn)
    if kind < 0.3:
        return Plan(False, None, 0, dice.uniform(0, acts * _ACT_S), dice, torn)
    return Plan(False, dice.choice(targets), dice.randrange(acts), dice.uniform(0, _JITTER_S), dice, torn)


class Trigger:
    """Watches a child's events for the plan's moment."""

    def __init__(self, plan: Plan, now: float) -> None:
        self._plan = plan
        self._acknowledged = 0
        self.at = now + plan.delay_s if plan.target is None and not plan.orderly else None
        """When to kill; None: not yet known."""

    def see(self, event: Event, now: float) -> None:
        self._acknowledged += isinstance(event, Done)
        if self.at is not None or self._plan.target is None or self._acknowledged < self._plan.after:
            return
        reached = (isinstance(event, Asked) and event.act == self._plan.target) or (
            isinstance(event, Step) and event.text == self._plan.target
        )
        if reached:
            self.at = now + self._plan.delay_s


def phase(last: Event | None, steps: list[tuple[str, str | None]]) -> str:
    """In words, where a child was when it ended: `steps` are the operations under way and how far each one was."""
    if last is None:
        return "recovering"
    if isinstance(last, Started):
        return "looking"
    if isinstance(last, Looked) or not steps:
        return "idle"
    return "+".join(sorted({act if step is None else f"{act} ({step})" for act, step in steps}))
