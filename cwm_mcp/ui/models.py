"""What the page is told. None is "unknown", never zero: the page shows it as a dash."""

from pydantic import BaseModel

from cwm_mcp.api import results as m


class TreeWindow(m.WindowItem):
    """A window in its place."""

    under: str | None
    """The window it hangs under; None for a root. `parent_window` names the parent also where that is gone."""


class Saved(BaseModel):
    """What the engine did not have to compute since its start."""

    tokens: int | None
    by_tier: dict[str, int] | None
    """Tokens that were loaded, by the tier they came from."""
    missed_tokens: int | None
    load_seconds: float | None
    prefill_tokens_per_second: float | None
    """vLLM's own: prompt tokens that finished requests had computed, over the time they waited for it."""
    seconds: float | None
    """What computing `tokens` at that rate would have taken, less the loading: an estimate, not a measurement."""


class Overview(BaseModel):
    """One look at everything. A part that could not be read is None, and `faults` says why."""

    version: str
    read_at: str
    engine_up: bool | None
    windows: list[TreeWindow] | None
    """Oldest first; a parent comes before its children."""
    sessions: list[m.SessionItem] | None
    cache: m.CacheStats | None
    saved: Saved
    health: m.Health | None
    auto_freeze: m.AutoFreezePolicy | None
    faults: list[str]
