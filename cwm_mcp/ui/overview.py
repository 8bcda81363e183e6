"""Read everything that the page shows, concurrently. A part that cannot be read does not hide the others."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_window_name
from cwm_connector.core.types import TierName
from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_connector.protocol.stats import CacheStats
from cwm_connector.settings import Settings
from cwm_connector.version import __version__
from cwm_mcp.api import arguments as a
from cwm_mcp.api.diff import WindowDiff, diff_windows
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.tree import all_windows, parents_of
from cwm_mcp.ui.models import Overview, TimeSaved, TreeWindow
from cwm_mcp.ui.texts import TextPage, text_page
from cwm_mcp.ui.time_saved import time_saved

T = TypeVar("T")

_TIMEOUT_S: Final = 8.0
"""For each part. Reading 10,000 windows takes less, and the user learns soon that an engine hangs."""
_PAGE: Final = 100
"""Sessions per request."""
_CONTEXT_TOKENS: Final = 60
"""Of each side of the first difference between two windows."""
_CACHE_FACTOR: Final = 4
"""Keep the list for this many times the time it took to read, so that polling uses at most a fifth of a core."""


class OverviewReader:
    """Reads the overview. One per server, used only on the server's event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._operations = Operations(settings, client_name="cwm-ui")
        self._list_lock = asyncio.Lock()
        self._windows: list[TreeWindow] = []
        self._cached_until = 0.0

    async def aclose(self) -> None:
        """Close the connections to the engine and to vLLM."""
        await self._operations.aclose()

    async def window(self, name: str) -> m.Status:
        """Return the status of a window.

        Raise `Code.WINDOW_NAME` for an invalid name, `Code.WINDOW_NOT_FOUND` for an unknown one, and the errors of
        reading the engine or the catalog.
        """
        return await self._operations.status(a.parse(calls.StatusArgs, {"window_name": name}))

    async def text(self, name: str, first: int) -> TextPage:
        """Return a page of a window's conversation. Raise as `window` does."""
        return await text_page(self._operations, check_window_name(name), first)

    async def diff(self, one: str, other: str) -> WindowDiff:
        """Compare two windows. Raise as `window` does."""
        return await diff_windows(self._operations, check_window_name(one), check_window_name(other), _CONTEXT_TOKENS)

    async def read(self) -> Overview:
        """Return the overview. Raise nothing, because the overview says what could not be read."""
        faults: list[str] = []
        windows, sessions, cache, (engine_up, saved), health, policy = await asyncio.gather(
            _or_none(self._all_windows(), faults),
            _or_none(self._all_sessions(), faults),
            _or_none(self._stats(), faults),
            self._engine_and_time_saved(faults),
            _or_none(self._operations.health(calls.HealthArgs()), faults),
            _or_none(self._operations.policy(calls.PolicyChange()), faults),
        )
        return Overview(
            version=__version__,
            read_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            engine_up=engine_up,
            windows=windows,
            sessions=sessions,
            cache=cache,
            saved=saved,
            health=health,
            auto_freeze=policy,
            faults=list(dict.fromkeys(faults)),
        )

    async def _engine_and_time_saved(self, faults: list[str]) -> tuple[bool | None, TimeSaved]:
        """Return whether an engine answers, and the time that it saved."""
        metrics = await _or_none(self._operations.metrics(a.MetricsArguments()), faults)
        samples = (metrics.metrics if metrics else None) or []
        up = next((bool(each.value) for each in samples if each.name == "cwm_engine_up"), None)
        return up, time_saved(samples)

    async def _stats(self) -> CacheStats:
        """Return the sizes. Without an engine a Redis that is not configured is no tier."""
        stats = await self._operations.stats(calls.NoArgs())
        if self._settings.redis_url is None and stats.kv_store.hits is None:
            tiers = {**stats.kv_store.tiers, TierName.REDIS.value: None}
            stats = msgspec.structs.replace(stats, kv_store=msgspec.structs.replace(stats.kv_store, tiers=tiers))
        return stats

    async def _all_windows(self) -> list[TreeWindow]:
        async with self._list_lock:
            begun = time.monotonic()
            if begun >= self._cached_until:
                listed = await all_windows(self._operations)
                parents = parents_of(listed)
                self._windows = [
                    TreeWindow(**msgspec.structs.asdict(each), under=parents[each.name]) for each in listed
                ]
                now = time.monotonic()
                self._cached_until = now + _CACHE_FACTOR * (now - begun)
            return self._windows

    async def _all_sessions(self) -> list[m.SessionItem]:
        """Return all sessions, last active first. A session that moves between two pages is listed once."""
        found: dict[str, m.SessionItem] = {}
        offset, more = 0, True
        while more:
            page = await self._operations.sessions(calls.SessionsArgs(limit=_PAGE, offset=offset))
            found.update((each.session_id, each) for each in page.sessions)
            offset, more = offset + _PAGE, page.has_more
        return list(found.values())


async def _or_none(part: Awaitable[T], faults: list[str]) -> T | None:
    """Return the part, or None after adding the reason to `faults`.

    An unreachable engine is not added, because `engine_up` says so.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await part
    except TimeoutError:
        message = f"the engine did not answer within {_TIMEOUT_S:g} s; check that it is still running"
        faults.append(str(CWMError(Code.ENGINE_TIMEOUT, message)))
    except CWMError as problem:
        if problem.code is not Code.ENGINE_UNREACHABLE:
            faults.append(str(problem))
    return None
