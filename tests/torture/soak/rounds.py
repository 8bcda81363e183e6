"""The long form: round after round with other conversations and settings, then every bug planted once."""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.torture.soak.conversations import Conversations
from tests.torture.soak.inside import BUGS
from tests.torture.soak.oracle import Oracle
from tests.torture.soak.soak import Outcome, Rig, Soak, reference, rig, run

ROUND_S: Final = 600.0
"""Of clients and weather; starts and the look at the end come on top."""
BUG_S: Final = 45.0
"""A planted bug shows earlier as a rule. The run ends with what it finds."""
_AROUND_S: Final = 240.0
"""Two starts, the reference and the end of one round."""


@dataclass(slots=True)
class Rounds:
    """What all rounds found, and for each planted bug by what it was found; None: it was not."""

    outcomes: list[Outcome] = field(default_factory=list)
    bugs: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Return whether nothing was wrong, and every planted bug was found."""
        return bool(self.outcomes) and not any(each.violations for each in self.outcomes) and all(self.bugs.values())

    def report(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"good": self.is_good, "rounds": [each.report() for each in self.outcomes], "bugs": self.bugs}


def settings(seed: str, number: int, seconds: float) -> Soak:
    """Return the round's own mix: catalogs and chunk sizes take turns."""
    return Soak(
        f"{seed}.{number}",
        seconds,
        roots=6,
        depth=4,
        sample=12,
        shared_catalog=number % 2 == 0,
        chunk_tokens=256 if number % 4 < 2 else 128,
    )


def soak(seed: str, deadline: float, *, bugs: bool) -> Rounds:
    """Run rounds until the deadline (`time.monotonic`), at least one, or until something is wrong."""
    found = Rounds()
    if bugs:
        _plant(seed, found)
    number = 0
    while not found.outcomes or (time.monotonic() + _AROUND_S < deadline and found.is_good):
        seconds = max(60.0, min(ROUND_S, deadline - time.monotonic() - _AROUND_S))
        mix = settings(seed, number, seconds)
        said = reference(mix)
        with rig(mix) as on:
            found.outcomes.append(run(mix, on, said))
        print(found.outcomes[-1].summary(), flush=True)
        number += 1
    return found


def _plant(seed: str, found: Rounds) -> None:
    """Plant each bug. They share one reference, and an engine as long as none of them leaks."""
    base = replace(settings(seed, 0, BUG_S), seed=f"{seed}.bugs", roots=3, depth=3, sample=5)
    said = reference(base)
    left = sorted(BUGS, key=lambda name: BUGS[name].leaks)
    while left:
        with rig(base) as on:
            leaks = False
            while left and not leaks:
                name = left.pop(0)
                found.bugs[name] = find(base, on, said, name)
                leaks = BUGS[name].leaks
                print(f"planted {name}: {found.bugs[name] or 'NOT FOUND'}", flush=True)


def find(soak: Soak, on: Rig, said: tuple[Conversations, Oracle], bug: str) -> str | None:
    """Plant a bug. Return by what it was found."""
    outcome = run(soak, on, said, bug)
    texts = [str(each) for each in outcome.violations]
    text = next((text for text in texts if any(words in text for words in BUGS[bug].says)), None)
    if text is None:
        print(outcome.summary(), flush=True)
    return text
