"""What a start has found in a store, held against what the ledger says may stand there. Knows nothing of engines."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.torture.events import Damage, Seen
from tests.torture.ledger import Ledger, State
from tests.torture.texts import fingerprint, ids_of, restorable, tokens_of


class Kind(enum.StrEnum):
    LOST = "lost"
    """An acknowledged window is not there, or can't be restored whole."""
    CORRUPT = "corrupt"
    """It is there with other fields, token ids or bytes, or the catalog contradicts itself."""
    PHANTOM = "phantom"
    """A window that nobody asked for, or one whose deletion was acknowledged."""
    LEAKED = "leaked"
    """The tiers hold something that the catalog does not refer to, or the catalog says they hold what they don't."""
    FAILED = "failed"
    """The engine did not start, did not serve on, or refused what it had no reason to refuse."""


@dataclass(frozen=True, slots=True)
class Violation:
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    violations: tuple[Violation, ...]
    matching: Mapping[str, int]
    """For each name that may be in several states, the number of the one that was seen."""


def judge(ledger: Ledger, seen: Sequence[Seen], damage: Sequence[Damage]) -> Verdict:
    """`seen` is the whole listing of a start."""
    violations = [Violation(Kind.LEAKED if each.leak else Kind.CORRUPT, each.text) for each in damage]
    matching: dict[str, int] = {}
    found = {each.name: each for each in seen}
    for name, states in ledger.states().items():
        one = found.get(name)
        differences = [_difference(state, one) for state in states]
        if None in differences:
            if len(states) > 1:
                matching[name] = differences.index(None)
        else:
            violations.append(_worst(states, differences))
    for name in found.keys() - ledger.states().keys():
        violations.append(Violation(Kind.PHANTOM, f"{name} is listed and was never asked for"))
    return Verdict(tuple(violations), matching)


def _worst(states: Sequence[State], differences: Sequence[Violation | None]) -> Violation:
    """Of the reasons why what was seen is none of the states: one of a window that should stand, if there is one."""
    reasons = [reason for reason in differences if reason is not None]
    standing = [reason for state, reason in zip(states, differences, strict=True) if state is not None and reason]
    return [*reasons, *standing][-1]


def _difference(state: State, seen: Seen | None) -> Violation | None:
    if state is None:
        return None if seen is None else Violation(Kind.PHANTOM, f"{seen.name} is listed and was deleted or refused")
    if seen is None:
        return Violation(Kind.LOST, f"{state.name} was acknowledged and is not listed")
    ids = ids_of(state.text)
    expected: dict[str, object] = {
        "session_id": state.session_id,
        "tokens": tokens_of(state.text),
        "ids": fingerprint(ids),
        "description": state.description,
        "tags": state.tags,
    }
    if state.size_bytes is not None:
        expected |= {"size_bytes": state.size_bytes}
    if state.size_bytes is not None or state.parent is not None:
        expected |= {"parent": state.parent}
    for field, value in expected.items():
        if getattr(seen, field) != value:
            return Violation(Kind.CORRUPT, f"{state.name} has {field} {getattr(seen, field)!r} instead of {value!r}")
    if seen.wrong_bytes:
        return Violation(Kind.CORRUPT, f"{state.name} restores wrong bytes: {seen.fault}")
    if seen.restored != restorable(state.text):
        kind = Kind.CORRUPT if "CWM-4004" in (seen.fault or "") else Kind.LOST
        text = f"{state.name} restores {seen.restored} of {restorable(state.text)} tokens: {seen.fault}"
        return Violation(kind, text)
    return None
