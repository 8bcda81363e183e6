"""When sessions are frozen by themselves, under which names, and how many of those windows are kept.

The settings (CWM_AUTO_FREEZE_*) are where it begins; what is changed by the tool or by `cwm policy` is kept in the
catalog, field by field, and wins over them, also after a restart.
"""

import hashlib
import json
import math
import re
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_tags, check_window_name
from cwm_connector.core.types import Micros
from cwm_connector.protocol.calls import PolicyArgs
from cwm_connector.settings import Settings

MAX_PATTERN: Final = 80
"""Characters; a session's id has to find room in a name beside them."""
MAX_NAME: Final = 128
_ROOM_FOR_NUMBER: Final = 4
"""`-999` behind a name that is taken."""
_PLACES: Final = frozenset({"session_id", "timestamp", "generation"})
_MICROS_PER_MINUTE: Final = 60_000_000
_LONGEST_MINUTES: Final = 60.0 * 24 * 365
_LARGEST: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Policy:
    """`enabled` is the switch for all of it; a time-out or threshold of 0 switches that one reason off."""

    enabled: bool = False
    idle_timeout_minutes: float = 30.0
    token_threshold: int = 100_000
    naming_pattern: str = "auto-{session_id}-{timestamp}"
    keep_last: int = 3
    """Automatic windows of each kind that a session keeps; 0 keeps all."""
    tags: tuple[str, ...] = ()
    """Beside `auto`."""

    def __post_init__(self) -> None:
        """Raises: CWM-1003."""
        _require(
            math.isfinite(self.idle_timeout_minutes) and 0 <= self.idle_timeout_minutes <= _LONGEST_MINUTES,
            f"idle_timeout_minutes is {self.idle_timeout_minutes:g}; give 0 (off) to {_LONGEST_MINUTES:.0f}",
        )
        _require(
            0 <= self.token_threshold <= _LARGEST,
            f"token_threshold is {self.token_threshold}; give 0 (off) to {_LARGEST}",
        )
        _require(0 <= self.keep_last <= _LARGEST, f"keep_last is {self.keep_last}; give 0 (all of them) to {_LARGEST}")
        _check_pattern(self.naming_pattern)
        check_tags(list(self.tags))

    def idle_due_at(self, last_active_at: Micros) -> Micros | None:
        """When a session that stays silent is frozen; None where that is off."""
        if not self.enabled or not self.idle_timeout_minutes:
            return None
        return Micros(last_active_at + int(self.idle_timeout_minutes * _MICROS_PER_MINUTE))

    def crossings(self, tokens: int) -> int:
        """How often a session of so many tokens has grown by the threshold: more of them are a reason to freeze."""
        return tokens // self.token_threshold if self.enabled and self.token_threshold else 0

    def window_name(self, session_id: str, at: Micros, generation: int) -> str:
        """A legal name for every legal session id, with room for a number behind it."""
        return _filled(self.naming_pattern, session_id, at, generation)


def initial(settings: Settings) -> Policy:
    """Raises: CWM-1003 for a setting that can't work."""
    return Policy(
        settings.auto_freeze_enabled,
        settings.auto_freeze_idle_timeout_minutes,
        settings.auto_freeze_token_threshold,
        settings.auto_freeze_naming_pattern,
        settings.auto_freeze_keep_last,
    )


def changed(policy: Policy, args: PolicyArgs) -> Policy:
    """The policy with every field that `args` gives. Raises: CWM-1003."""
    given = {name: value for name, value in msgspec.structs.asdict(args).items() if value is not None}
    given.pop("reset")
    if "tags" in given:
        given["tags"] = tuple(check_tags(given["tags"]))
    return replace(policy, **given)


def as_note(policy: Policy, settings: Policy) -> str | None:
    """What differs from the settings, to be kept; None if nothing does."""
    own, theirs = asdict(policy), asdict(settings)
    differing = {name: value for name, value in own.items() if value != theirs[name]}
    return json.dumps(differing, sort_keys=True) if differing else None


def from_note(note: str | None, settings: Policy) -> Policy:
    """The settings with what was kept. Raises: CWM-1003 for a note that no version of ours wrote."""
    if note is None:
        return settings
    known = {each.name for each in fields(Policy)}
    try:
        kept: Mapping[str, Any] = {name: value for name, value in json.loads(note).items() if name in known}
        return changed(settings, msgspec.convert(kept, PolicyArgs))
    except (ValueError, AttributeError, msgspec.ValidationError) as problem:
        raise CWMError(Code.ARGUMENT, f"the kept policy can't be read ({problem}); set it anew") from None


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise CWMError(Code.ARGUMENT, fault)


def _check_pattern(pattern: str) -> None:
    """Raises: CWM-1003 for what could not become a name, whatever the session."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(pattern) if part[1] is not None]
        places = [place for place, _, _ in parts]
        plain = not any(form or conversion for _, form, conversion in parts)
        if len(pattern) <= MAX_PATTERN and plain and set(places) <= _PLACES and len(set(places)) == len(places):
            check_window_name(_filled(pattern, "s" * MAX_NAME, Micros(0), 999_999_999))
            return
    except (CWMError, ValueError):
        pass
    raise CWMError(
        Code.ARGUMENT,
        f"naming_pattern {pattern[:MAX_PATTERN]!r} makes no window name; use letters, digits and . _ - with "
        f"{{session_id}}, {{timestamp}} and {{generation}}, each once, up to {MAX_PATTERN} characters",
    )


def _filled(pattern: str, session_id: str, at: Micros, generation: int) -> str:
    moment = datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y%m%d-%H%M%S")
    values = {"timestamp": moment, "generation": str(generation)}
    room = MAX_NAME - _ROOM_FOR_NUMBER - len(pattern.format(session_id="", **values))
    legal = re.sub(r"[^A-Za-z0-9._-]", "-", session_id).lstrip(".") or "session"
    if len(legal) > room:
        digest = hashlib.sha256(session_id.encode()).hexdigest()[:8]
        legal = f"{legal[: max(0, room - 9)]}-{digest}"
    return pattern.format(session_id=legal, **values)
