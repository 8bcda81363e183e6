"""The JSON that the page reads. None means unknown, never zero. The page shows it as a dash."""

import msgspec

from cwm_connector.protocol import results as m
from cwm_connector.protocol import stats


class TreeWindow(m.WindowItem, frozen=True):
    """A window with its place in the tree."""

    under: str | None
    """The parent in the tree, or None for a root. `parent_window` names the parent even if it was deleted."""


class TimeSaved(msgspec.Struct, frozen=True):
    """The tokens and the time that the engine saved since its start by restoring windows."""

    tokens: int | None
    by_tier: dict[str, int] | None
    """Loaded tokens by the tier that they came from."""
    missed_tokens: int | None
    load_seconds: float | None
    prefill_tokens_per_second: float | None
    """The engine's speed in the last steps that computed mostly prompts."""
    seconds: float | None
    """An estimate: the time to compute `tokens` at that speed, minus `load_seconds`."""


class Overview(msgspec.Struct, frozen=True):
    """Everything that the page shows. A part that could not be read is None, and `faults` says why."""

    version: str
    read_at: str
    engine_up: bool | None
    windows: list[TreeWindow] | None
    """Oldest first, so a parent comes before its children."""
    sessions: list[m.SessionItem] | None
    cache: stats.CacheStats | None
    saved: TimeSaved
    health: stats.Health | None
    auto_freeze: m.AutoFreezePolicy | None
    faults: list[str]
