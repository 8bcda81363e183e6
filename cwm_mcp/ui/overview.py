"""Gathers what the page shows: every part at once, and each for itself, so that one that fails hides no other."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Final, TypeVar

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.settings import Settings
from cwm_connector.version import __version__
from cwm_mcp.api import arguments as a
from cwm_mcp.api import results as m
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.tree import all_windows, parents_of
from cwm_mcp.api.vllm_http import exposition
from cwm_mcp.ui.models import Overview, Saved, TreeWindow
from cwm_mcp.ui.saved import saved

T = TypeVar("T")

_PATIENCE_S: Final = 8.0
"""For each part. Longer than a read of 10,000 windows takes, short enough to be told that the engine hangs."""
_PAGE: Final = 100
_REST: Final = 4
"""A list is kept for so many times what reading it took: pages that poll take a fifth of one core at most."""


class OverviewReader:
    """One for each server, on its event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._operations = Operations(settings, client_name="cwm-ui")
        self._listing = asyncio.Lock()
        self._windows: list[TreeWindow] = []
        self._kept_until = 0.0

    async def aclose(self) -> None:
        await self._operations.aclose()

    async def window(self, name: str) -> m.Status:
        """Raises: CWM-1002 for what is no name, CWM-2002 for an unknown window; what a read can raise."""
        return await self._operations.status(a.parse(a.StatusArguments, {"window_name": name}))

    async def read(self) -> Overview:
        """Raises nothing: what can't be read is told."""
        faults: list[str] = []
        everything = a.NoArguments()
        windows, sessions, cache, (engine_up, spared), health, policy = await asyncio.gather(
            _or_none(self._all_windows(), faults),
            _or_none(self._all_sessions(), faults),
            _or_none(self._operations.stats(everything), faults),
            self._counted(faults),
            _or_none(self._operations.health(a.HealthArguments()), faults),
            _or_none(self._operations.policy(a.PolicyArguments()), faults),
        )
        return Overview(
            version=__version__,
            read_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            engine_up=engine_up,
            windows=windows,
            sessions=sessions,
            cache=cache,
            saved=spared,
            health=health,
            auto_freeze=policy,
            faults=list(dict.fromkeys(faults)),
        )

    async def _counted(self, faults: list[str]) -> tuple[bool | None, Saved]:
        """Whether an engine answers, and what it has saved."""
        metrics, vllm = await asyncio.gather(
            _or_none(self._operations.metrics(a.MetricsArguments()), faults), exposition(self._settings)
        )
        samples = (metrics.metrics if metrics else None) or []
        up = next((bool(each.value) for each in samples if each.name == "cwm_engine_up"), None)
        return up, saved(samples, vllm)

    async def _all_windows(self) -> list[TreeWindow]:
        async with self._listing:
            begun = time.monotonic()
            if begun >= self._kept_until:
                listed = await all_windows(self._operations)
                parents = parents_of(listed)
                self._windows = [TreeWindow(**each.model_dump(), under=parents[each.name]) for each in listed]
                now = time.monotonic()
                self._kept_until = now + _REST * (now - begun)
            return self._windows

    async def _all_sessions(self) -> list[m.SessionItem]:
        """Last active first; one that speaks between two pages is told once."""
        found: dict[str, m.SessionItem] = {}
        offset, more = 0, True
        while more:
            page = await self._operations.sessions(a.SessionsArguments(limit=_PAGE, offset=offset))
            found.update((each.session_id, each) for each in page.sessions)
            offset, more = offset + _PAGE, page.has_more
        return list(found.values())


async def _or_none(part: Awaitable[T], faults: list[str]) -> T | None:
    """The part, or None and why. That an engine is away is no fault of a part: `engine_up` tells it."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await part
    except TimeoutError:
        late = f"the engine did not answer within {_PATIENCE_S:g} s; see whether it still runs"
        faults.append(str(CWMError(Code.ENGINE_TIMEOUT, late)))
    except CWMError as problem:
        if problem.code is not Code.ENGINE_UNREACHABLE:
            faults.append(str(problem))
    return None
