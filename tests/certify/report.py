"""The figures of a run, and whether they certify anything."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.certify.cases import Case
from tests.certify.compare import Difference
from tests.support.machine import describe


@dataclass(frozen=True, slots=True)
class Compared:
    """One window after its thaw."""

    case: Case
    tokens: int
    restorable: int
    """The window's tokens in whole blocks."""
    restored: int
    """Cached tokens, by vLLM, of the first request with the thaw's salt. No other request has filled blocks for it."""
    tiers: tuple[str, ...]
    """Where the thaw found them."""
    to_hit: Difference
    """The thawed session's answer beside a plain prefix hit's."""
    to_uninterrupted: Difference
    """The same beside the answer of the session that was never interrupted."""
    proof: str | None
    """`window_thaw`'s answer. None for a freeze or thaw beside others, whose batches change logprobs."""

    @property
    def faults(self) -> list[str]:
        """Return what is wrong, each with the window's case."""
        found = []
        if self.restored < self.restorable or not self.restored:
            found.append(f"restored {self.restored} of {self.restorable} tokens")
        if not self.to_hit.none:
            found.append(f"beside a prefix hit: {self.to_hit}")
        if not self.to_uninterrupted.none:
            found.append(f"beside the uninterrupted session: {self.to_uninterrupted}")
        if self.proof not in (None, "equal"):
            found.append(f"its proof is {self.proof}")
        return [f"{self.case}: {fault}" for fault in found]


@dataclass(slots=True)
class Report:
    """`asked`: the windows that the run was to certify."""

    asked: int
    compared: list[Compared] = field(default_factory=list)
    noise: dict[str, Difference] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """What went wrong before a comparison."""
    restarts: int = 0
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        """Return everything that keeps the run from certifying anything."""
        found = [*self.failures, *(fault for each in self.compared for fault in each.faults)]
        if len(self.compared) < self.asked:
            found.append(f"{len(self.compared)} of {self.asked} windows were compared")
        if not sum(each.restored for each in self.compared):
            found.append("nothing was restored")
        return found

    def summary(self) -> str:
        cases = [each.case for each in self.compared]
        proofs = Counter(each.proof for each in self.compared if each.proof)
        lines = [
            f"{len(cases)} windows of {min((each.tokens for each in self.compared), default=0)} to "
            f"{max((each.tokens for each in self.compared), default=0)} tokens, {self.restarts} kill -9, "
            f"{self.seconds:.0f} s",
            _counted("thawed", Counter(case.moment.value for case in cases)),
            _counted("loaded from", Counter("+".join(each.tiers) for each in self.compared)),
            _counted("branch of another window", Counter("yes" if case.branch else "no" for case in cases)),
            _counted("load beside it", Counter("yes" if case.load else "no" for case in cases)),
            f"{sum(each.restored for each in self.compared)} tokens restored, by vLLM's usage",
            f"equal to a prefix hit, tokens and logprobs: {sum(each.to_hit.none for each in self.compared)}",
            f"equal to the uninterrupted session: {sum(each.to_uninterrupted.none for each in self.compared)}",
            _counted("proofs", proofs),
            *(f"noise floor, {what}: {each}" for what, each in self.noise.items()),
        ]
        return "\n".join([*lines, *(f"FAULT {fault}" for fault in self.faults)])

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": describe(),
            "windows": len(self.compared),
            "restored_tokens": sum(each.restored for each in self.compared),
            "noise": {what: str(each) for what, each in self.noise.items()},
            "faults": self.faults,
            "summary": self.summary(),
        }


def _counted(what: str, counts: "Counter[str]") -> str:
    return f"{what}: " + (", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none")
