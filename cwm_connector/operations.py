"""Carries the control socket's calls out: the writing ones by Freezer and Thawer, the reading ones from the catalog.

Reading never touches the engine thread, but for what only it knows (what a session has left in the prefix cache);
that is waited for briefly and left out if the engine is busy.
"""

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, Final

import cwm_connector
from cwm_connector.catalog import views
from cwm_connector.catalog.base import Catalog
from cwm_connector.engine import Engine, settled, to_the_end
from cwm_connector.freeze import Freezer, ProgressSink
from cwm_connector.protocol import (
    Args,
    CloneArgs,
    CWMError,
    DeleteArgs,
    FreezeArgs,
    HealthArgs,
    ListArgs,
    NoArgs,
    Op,
    SessionsArgs,
    StatusArgs,
    TagArgs,
    ThawArgs,
    TokensArgs,
    check_description,
    check_tags,
    check_window_name,
)
from cwm_connector.sessions import SessionView, now_micros
from cwm_connector.thaw import Thawer

LIVE_FACTS_S: Final = 0.25
"""How long a list waits for the engine thread's part."""


class EngineOperations:
    """`Operations` of the control server, for a running engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started = time.monotonic()
        self._freezer = Freezer(engine)
        self._thawer = Thawer(engine)

    async def restore_thaws(self) -> int:
        """Makes the thaws of before a restart loadable again; before the socket opens."""
        return await self._thawer.rebind()

    async def call(self, op: Op, args: Args, progress: ProgressSink) -> dict[str, Any]:
        outcome = "failed"
        try:
            result = await self._dispatch(op, args, progress)
            outcome = "done"
            return result
        except CWMError as problem:
            outcome = f"CWM-{int(problem.code)}"
            raise
        finally:
            self._engine.metrics.operations.labels(op.value, outcome).inc()

    def _dispatch(self, op: Op, args: Any, progress: ProgressSink) -> Awaitable[dict[str, Any]]:
        handlers: dict[Op, Callable[[], Awaitable[dict[str, Any]]]] = {
            Op.FREEZE: lambda: self._freezer.freeze(args, progress),
            Op.THAW: lambda: self._thawer.thaw(args, progress),
            Op.CLONE: lambda: self._thawer.clone(args),
            Op.DELETE: lambda: self._freezer.delete(args),
            Op.TAG: lambda: self._tag(args),
            Op.LIST: lambda: self._list(args),
            Op.STATUS: lambda: self._status(args),
            Op.TOKENS: lambda: self._tokens(args),
            Op.SESSIONS: lambda: self._sessions(args),
            Op.STATS: self._stats,
            Op.HEALTH: lambda: self._health(args),
            Op.METRICS: self._metrics,
            Op.PING: self._ping,
        }
        return handlers[op]()
