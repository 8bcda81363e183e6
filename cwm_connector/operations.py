"""Carries the control socket's calls out: each is handed to whoever does it, and counted."""

from collections.abc import Awaitable
from typing import Any

from cwm_connector.control import ProgressSink
from cwm_connector.engine import Engine, to_the_end
from cwm_connector.freeze import Freezer
from cwm_connector.protocol import (
    Args,
    CloneArgs,
    CWMError,
    DeleteArgs,
    FreezeArgs,
    HealthArgs,
    ListArgs,
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
from cwm_connector.reads import Reader
from cwm_connector.sessions import now_micros
from cwm_connector.thaw import Thawer


class EngineOperations:
    """`Operations` of the control server, for a running engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._freezer = Freezer(engine)
        self._thawer = Thawer(engine)
        self._reader = Reader(engine)

    async def restore_thaws(self) -> int:
        """Makes the thaws of before a restart loadable again; before the socket opens."""
        return await self._thawer.rebind()

    async def call(self, op: Op, args: Args, progress: ProgressSink) -> dict[str, Any]:
        outcome = "failed"
        try:
            result = await self._carry_out(op, args, progress)
            outcome = "done"
            return result
        except CWMError as problem:
            outcome = f"CWM-{int(problem.code)}"
            raise
        finally:
            self._engine.metrics.operations.labels(op.value, outcome).inc()

    def _carry_out(self, op: Op, args: Args, progress: ProgressSink) -> Awaitable[dict[str, Any]]:
        match args:
            case FreezeArgs():
                return self._freezer.freeze(args, progress)
            case ThawArgs():
                return self._thawer.thaw(args, progress)
            case CloneArgs():
                return self._thawer.clone(args)
            case DeleteArgs():
                return self._freezer.delete(args)
            case TagArgs():
                return self._tag(args)
            case ListArgs():
                return self._reader.list_windows(args)
            case StatusArgs():
                return self._reader.status(args)
            case TokensArgs():
                return self._reader.token_ids(args)
            case SessionsArgs():
                return self._reader.sessions(args)
            case HealthArgs():
                return self._reader.health(args)
        return {Op.STATS: self._reader.stats, Op.METRICS: self._metrics, Op.PING: self._ping}[op]()

    async def _tag(self, args: TagArgs) -> dict[str, Any]:
        name = check_window_name(args.window_name)
        add, remove = check_tags(args.add), check_tags(args.remove)
        description = None if args.description is None else check_description(args.description)
        row = await to_the_end(
            self._engine.catalog.run(lambda catalog: catalog.tag_window(name, add, remove, description, now_micros()))
        )
        return {"window_name": row.name, "tags": list(row.tags), "description": row.description}

    async def _metrics(self) -> dict[str, Any]:
        totals = await self._engine.catalog.run(lambda catalog: catalog.totals())
        metrics = self._engine.metrics
        metrics.windows.set(totals.windows)
        metrics.chunks.set(totals.chunks)
        metrics.chunk_bytes.set(totals.stored_bytes)
        return {"metrics": metrics.samples()}

    async def _ping(self) -> dict[str, Any]:
        return {"model": self._engine.model}
