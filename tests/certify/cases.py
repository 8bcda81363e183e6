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


UNIT: Final = 128
"""Tokens: vLLM's block on the CPU build, and eight of them on CUDA."""
LENGTHS: Final = (1, 2, 3, 5, 8)
"""Of the prompts, in units."""
RESTS: Final = (-8, 5, 60)
"""Tokens more than that. With -8 the answer completes a block, and with none of them the cue begins one."""
BRANCHES: Final = (None, 0.3, 0.5, 1.0)
"""Which part of an earlier window's tokens a window begins with. None: none of them."""


@dataclass(frozen=True, slots=True)
class Case:
    """One window. `seed` decides its text."""

    seed: int
    units: int
    rest: int
    branch: float | None
    moment: Moment
    load: bool
    """Other requests run beside its freeze and its thaw."""

    @property
    def name(self) -> str:
        return f"certify-{self.seed}"

    @property
    def length(self) -> int:
        """The prompt's tokens."""
        return self.units * UNIT + self.rest


def cases(windows: int, seed: int) -> list[Case]:
    """Return the cases of a run. The first one branches off nothing, as there is nothing yet."""
    dice = Random(seed)
    kinds = list(itertools.product(Moment, LENGTHS, RESTS, BRANCHES))
    dice.shuffle(kinds)
    found = []
    for number, (moment, units, rest, branch) in zip(range(windows), itertools.cycle(kinds), strict=False):
        load = dice.random() < 0.25
        found.append(Case(1000 * seed + number, units, rest, branch if number else None, moment, load))
    return found
