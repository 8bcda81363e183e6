"""The auto-freeze policy: when sessions are frozen, under which names, and how many of the windows are kept.

The settings (CWM_AUTO_FREEZE_*) are its defaults. Changes by the tool or by `cwm policy` are kept in the catalog, field
by field. They override the settings, also after a restart.
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
"""Characters. They leave room for a session's id in the name."""
MAX_NAME: Final = 128
_ROOM_FOR_NUMBER: Final = 4
"""Characters of `-999`, which follows a name that is taken."""
_PLACES: Final = frozenset({"session_id", "timestamp", "generation"})
_MICROS_PER_MINUTE: Final = 60_000_000
_LONGEST_MINUTES: Final = 60.0 * 24 * 365
_LARGEST: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Policy:
    """`enabled` switches everything on or off. A time-out or threshold of 0 switches that reason off."""

    enabled: bool = False
    idle_timeout_minutes: float = 30.0
    token_threshold: int = 100_000
    naming_pattern: str = "auto-{session_id}-{timestamp}"
    keep_last: int = 3
    """Automatic windows of each kind that a session keeps. 0 keeps all."""
    tags: tuple[str, ...] = ()
    """Added to the tag `auto`."""

    def __post_init__(self) -> None:
        """Check every field. Raises: `Code.ARGUMENT`."""
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
        """Return when a session that stays idle is frozen. None if that reason is off."""
        if not self.enabled or not self.idle_timeout_minutes:
            return None
        return Micros(last_active_at + int(self.idle_timeout_minutes * _MICROS_PER_MINUTE))

    def crossings(self, tokens: int) -> int:
        """Return how many thresholds a session of so many tokens has passed. One more is a reason to freeze."""
        return tokens // self.token_threshold if self.enabled and self.token_threshold else 0

    def window_name(self, session_id: str, at: Micros, generation: int) -> str:
        """Return a legal name for any legal session id, with room for a number after it."""
        return _filled(self.naming_pattern, session_id, at, generation)


def initial(settings: Settings) -> Policy:
    """Return the policy that the settings describe. Raises: `Code.ARGUMENT` for a setting that can't work."""
    return Policy(
        enabled=settings.auto_freeze_enabled,
        idle_timeout_minutes=settings.auto_freeze_idle_timeout_minutes,
        token_threshold=settings.auto_freeze_token_threshold,
        naming_pattern=settings.auto_freeze_naming_pattern,
        keep_last=settings.auto_freeze_keep_last,
    )


def changed(policy: Policy, args: PolicyArgs) -> Policy:
    """Return the policy with the fields that `args` gives. Raises: `Code.ARGUMENT`."""
    given = {name: value for name, value in msgspec.structs.asdict(args).items() if value is not None}
    given.pop("reset")
    if "tags" in given:
        given["tags"] = tuple(check_tags(given["tags"]))
    return replace(policy, **given)


def as_note(policy: Policy, settings: Policy) -> str | None:
    """Return the fields that differ from the settings as text for the catalog. None if all agree."""
    fields_now, defaults = asdict(policy), asdict(settings)
    differing = {name: value for name, value in fields_now.items() if value != defaults[name]}
    return json.dumps(differing, sort_keys=True) if differing else None


def from_note(note: str | None, settings: Policy) -> Policy:
    """Return the settings with the changes that the catalog kept.

    Raises: `Code.ARGUMENT` for a note that can't be read.
    """
    if note is None:
        return settings
    known = {each.name for each in fields(Policy)}
    try:
        changes: Mapping[str, Any] = {name: value for name, value in json.loads(note).items() if name in known}
        return changed(settings, msgspec.convert(changes, PolicyArgs))
    except (ValueError, AttributeError, msgspec.ValidationError) as problem:
        fault = f"the policy in the catalog can't be read ({problem})"
        raise CWMError(Code.ARGUMENT, f"{fault}; set it again with `cwm policy`") from None


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise CWMError(Code.ARGUMENT, fault)


def _check_pattern(pattern: str) -> None:
    """Check that the pattern makes a legal name for any session. Raises: `Code.ARGUMENT`."""
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
        f"naming_pattern {pattern[:MAX_PATTERN]!r} does not make a window name; use letters, digits and . _ - with "
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
