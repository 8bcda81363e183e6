"""The windows of a run: every combination of what may matter, in an order that a seed decides."""

import enum
import itertools
from dataclasses import dataclass
from random import Random
from typing import Final


class Moment(enum.StrEnum):
    """When a window is thawed."""

    AT_ONCE = "at once"
    """From memory."""
    LATER = "later"
    """Once windows that came after it have pushed it out of memory."""
    RESTARTED = "after kill -9"


BLOCKS: Final = (1, 2, 3, 5, 8)
"""Whole blocks of the prompt, more or less."""
RESTS: Final = (-8, 5, 60)
"""Tokens beside them. With -8 the answer completes the last block, and with any of them the cue begins no block."""
BRANCHES: Final = (None, 0.3, 0.5, 1.0)
"""Which part of an earlier window's tokens a window begins with. None: none of them."""


@dataclass(frozen=True, slots=True)
class Case:
    """One window. `seed` decides its text."""

    seed: int
    blocks: int
    rest: int
    branch: float | None
    moment: Moment
    load: bool
    """Other requests run beside its freeze and its thaw."""

    @property
    def name(self) -> str:
        return f"certify-{self.seed}"


def cases(windows: int, seed: int) -> list[Case]:
    """Return the cases of a run. The first one branches off nothing, as there is nothing yet."""
    dice = Random(seed)
    kinds = list(itertools.product(Moment, BLOCKS, RESTS, BRANCHES))
    dice.shuffle(kinds)
    found = []
    for number, (moment, blocks, rest, branch) in zip(range(windows), itertools.cycle(kinds), strict=False):
        load = dice.random() < 0.25
        found.append(Case(1000 * seed + number, blocks, rest, branch if number else None, moment, load))
    return found
