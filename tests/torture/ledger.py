"""What was asked of a store and what it acknowledged: from that follows what may stand in it after any kill.

A window's name stands for the states that it may be in. An acknowledgement leaves one; a kill in the middle of an
operation leaves two: before and after. What a later start then shows is not yet promised (what it read may never have
reached the device), so both stay possible until that start has had something acknowledged: the catalog's log is one
file, and what makes a later transaction durable makes every earlier one so.
"""

from collections import Counter
from collections.abc import Mapping

import msgspec

from tests.torture.events import Asked, Done, Refused, Window

State = Window | None
"""None: there is no window of this name."""


class Ledger:
    """Over all loops of one store. Fed with events in their order; not thread-safe."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[State, ...]] = {}
        self._open: dict[int, Asked] = {}
        self._steps: dict[int, str] = {}
        self._shown: Mapping[str, int] | None = None
        self.acknowledged: Counter[str] = Counter()
        """Operations, by what they were."""

    def states(self) -> Mapping[str, tuple[State, ...]]:
        """For every name ever asked for, what may stand under it."""
        return self._states

    def under_way(self) -> tuple[Asked, ...]:
        return tuple(self._open.values())

    def steps(self) -> Mapping[int, str]:
        """How far the operations under way said they were."""
        return self._steps

    def ask(self, asked: Asked) -> None:
        self._open[asked.id] = asked

    def step(self, id: int, text: str) -> None:
        self._steps[id] = text

    def refuse(self, refused: Refused) -> Asked:
        """It changed nothing."""
        self._steps.pop(refused.id, None)
        return self._open.pop(refused.id)

    def acknowledge(self, done: Done) -> Asked:
        asked = self._open.pop(done.id)
        self._steps.pop(done.id, None)
        self.acknowledged[asked.act] += 1
        if self._shown is not None:
            self._settle(self._shown)
        if asked.name is not None:
            after = asked.after
            if after is not None and done.size_bytes is not None:
                after = msgspec.structs.replace(after, size_bytes=done.size_bytes, parent=done.parent)
            self._states[asked.name] = (after,)
        return asked

    def kill(self) -> None:
        """The engine is gone: what was under way has happened or not."""
        for asked in self._open.values():
            if asked.name is not None:
                before = self._states.get(asked.name, (None,))
                self._states[asked.name] = tuple(dict.fromkeys((*before, asked.after)))
        self._open.clear()
        self._steps.clear()
        self._shown = None

    def show(self, matching: Mapping[str, int]) -> None:
        """A start was found right: for each name with several states, the number of the one that it showed."""
        self._shown = matching

    def _settle(self, matching: Mapping[str, int]) -> None:
        for name, number in matching.items():
            self._states[name] = (self._states[name][number],)
        self._shown = None
