"""What a campaign did and found, in one paragraph."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.torture.judge import Kind, Violation


@dataclass(slots=True)
class Tally:
    loops: int = 0
    kills: int = 0
    cuts: int = 0
    orderly: int = 0
    """Children that did all their work and closed the store."""
    windows_checked: int = 0
    acknowledged: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    """What was under way when a child was killed; with two hands, each of the two counts."""
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def of(cls, tallies: "Iterable[Tally]", seconds: float) -> "Tally":
        """Several campaigns' in one, that took so long together."""
        whole = cls(seconds=seconds)
        for each in tallies:
            whole.loops += each.loops
            whole.kills += each.kills
            whole.cuts += each.cuts
            whole.orderly += each.orderly
            whole.windows_checked += each.windows_checked
            whole.acknowledged += each.acknowledged
            whole.phases += each.phases
            whole.violations += each.violations
        return whole

    def counts(self) -> dict[str, int]:
        found = Counter(violation.kind for violation in self.violations)
        return {kind.value: found[kind] for kind in Kind}

    def report(self) -> dict[str, Any]:
        """As plain data."""
        figures = {name: getattr(self, name) for name in ("loops", "kills", "cuts", "orderly", "windows_checked")}
        texts = [str(violation) for violation in self.violations]
        seconds = round(self.seconds, 1)
        counters = {"acknowledged": dict(self.acknowledged), "phases": dict(self.phases)}
        return {**figures, **counters, "seconds": seconds, "found": self.counts(), "violations": texts}

    def summary(self) -> str:
        found = ", ".join(f"{number} {kind}" for kind, number in self.counts().items())
        acts = ", ".join(f"{act} {number}" for act, number in self.acknowledged.most_common())
        phases = ", ".join(f"{phase} {number}" for phase, number in self.phases.most_common())
        rate = self.loops / self.seconds if self.seconds else 0.0
        ends = f"{self.kills} kill -9, {self.orderly} orderly ends; {self.cuts} of them with a power cut"
        return (
            f"torture: {self.loops} loops ({ends}), {self.acknowledged['freeze']} acknowledged freezes, "
            f"{self.windows_checked} windows checked: {found}\n"
            f"  {self.seconds:.0f} s, {rate:.2f} loops a second; acknowledged: {acts}\n"
            f"  under way at the end: {phases}"
        )
