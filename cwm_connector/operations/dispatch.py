"""Hands each call of the control socket to the operation that carries it out, and counts it. Control thread."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Final

from cwm_connector.control.async_helpers import finish_even_if_cancelled, run_periodically
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import CWMError
from cwm_connector.core.names import check_description, check_tags, check_window_name
from cwm_connector.core.types import now_micros
from cwm_connector.operations.auto_freeze.freezer import SHUTDOWN_LIMIT_S, AutoFreezer
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.delete import Deleter
from cwm_connector.operations.freeze.freezer import Freezer
from cwm_connector.operations.health import HealthReader
from cwm_connector.operations.observation.metrics_reader import MetricsReader
from cwm_connector.operations.observation.transfers import Transfers
from cwm_connector.operations.passport.canary import Canary
from cwm_connector.operations.queries import Queries
from cwm_connector.operations.start.home_check import HomeCheck
from cwm_connector.operations.thaw.finder import CatalogFinder
from cwm_connector.operations.thaw.thaw import Thawer
from cwm_connector.operations.tier_probe import TierProbe
from cwm_connector.operations.tiering import Tiering
from cwm_connector.operations.transfer.exporter import Exporter
from cwm_connector.operations.transfer.importer import Importer
from cwm_connector.operations.trash.can import TrashCan
from cwm_connector.operations.verify import Verifier
from cwm_connector.protocol.calls import (
    Args,
    CloneArgs,
    DeleteArgs,
    ExportArgs,
    FreezeArgs,
    HealthArgs,
    ImportArgs,
    ListArgs,
    Op,
    PolicyArgs,
    ProveArgs,
    RestoreArgs,
    ResumableArgs,
    SessionsArgs,
    StatusArgs,
    TagArgs,
    ThawArgs,
    TokensArgs,
    TrashArgs,
    VerifyArgs,
    WarmArgs,
)
from cwm_connector.protocol.results import Answer, EngineInfo, Tagged, TimedFreeze

logger = logging.getLogger(__name__)

EXPIRE_EVERY_S: Final = 60.0


class Dispatcher:
    """The operations of a running engine: the control server's `CallHandler`."""

    def __init__(self, engine: EngineContext) -> None:
        self._engine = engine
        self.home_check = HomeCheck(engine)
        self.tiering = Tiering(engine)
        self._freezer = Freezer(engine, self.tiering)
        self._thawer = Thawer(engine, self.tiering)
        self._finder = CatalogFinder(engine, self.tiering)
        self._deleter = Deleter(engine, self.tiering)
        self.trash = TrashCan(engine, self.tiering, self._deleter)
        self._verifier = Verifier(engine, self.tiering)
        self._exporter = Exporter(engine, self.tiering)
        self._importer = Importer(engine, self.tiering)
        self.auto = AutoFreezer(engine, self._freezer, self._deleter)
        self.transfers = Transfers()
        self._queries = Queries(engine, self.auto, self.transfers)
        self._health = HealthReader(engine, self.home_check)
        self._metrics = MetricsReader(engine, self._health)
        self.tier_probe = TierProbe(engine)
        self.canary = Canary(engine)

    async def prepare(self) -> None:
        """Load the policy and the thaws of before a restart. Call it after `home_check.start`.

        From then on requests find their windows.
        """
        self.tiering.load_from_catalog()
        await self.auto.load_from_catalog()
        await self._thawer.rebind()
        await self._finder.start()

    async def expire_sessions(self) -> None:
        """Let the engine look for expired sessions once a minute until cancelled, also when no request arrives."""
        await run_periodically(self._expire_some, EXPIRE_EVERY_S, "expiry of sessions")

    async def finish_before_shutdown(self) -> None:
        """Wait for the freezes that are under way, then freeze what the auto-freeze policy saves at the end.

        The last line that is logged is for people who read vLLM's own end. vLLM cancels the task that reads the
        engine's outputs, and often logs that as an error before it also cancels the task that waits for them.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(SHUTDOWN_LIMIT_S):
                await self._engine.freezes.wait_until_done()
        except TimeoutError:
            logger.warning("not every freeze could be completed before the shutdown")
        await self.auto.freeze_before_shutdown(max(0.0, SHUTDOWN_LIMIT_S - (time.monotonic() - began)))
        logger.info(
            "all acknowledged windows are stored; an EngineDeadError after this is vLLM's own and loses nothing"
        )

    async def call(self, op: Op, args: Args, progress: ProgressSink) -> Answer:
        """Carry out one call and return the contract's fields. Raises: what the operation raises."""
        outcome = "failed"
        try:
            with self.transfers.watch(args, progress) as reporting:
                result = await self._carry_out(op, args, reporting)
            outcome = "done"
            return result
        except CWMError as problem:
            outcome = f"CWM-{int(problem.code)}"
            raise
        finally:
            self._engine.metrics.operations.labels(op.value, outcome).inc()

    def _carry_out(self, op: Op, args: Args, progress: ProgressSink) -> Awaitable[Answer]:
        match args:
            case FreezeArgs():
                return self._freeze(args, progress)
            case ThawArgs():
                return self._thawer.thaw(args, progress)
            case ProveArgs():
                return self._thawer.prove(args)
            case WarmArgs():
                return self._thawer.warm(args, progress)
            case CloneArgs():
                self._engine.freezes.require_free(args.target_window)
                return self._thawer.clone(args)
            case DeleteArgs():
                return self._deleter.delete(args)
            case TrashArgs():
                return self.trash.put(args)
            case RestoreArgs():
                return self.trash.restore(args)
            case TagArgs():
                return self._tag(args)
            case ListArgs():
                return self._queries.list_windows(args)
            case StatusArgs():
                return self._queries.status(args)
            case TokensArgs():
                return self._queries.token_ids(args)
            case SessionsArgs():
                return self._queries.sessions(args)
            case HealthArgs():
                return self._health.health(args)
            case VerifyArgs():
                return self._verifier.verify(args, progress)
            case ExportArgs():
                return self._exporter.export(args, progress)
            case ImportArgs():
                return self._importer.import_window(args, progress)
            case ResumableArgs():
                return self._queries.resumable(args)
            case PolicyArgs():
                return self.auto.policy(args)
        without_arguments = {
            Op.STATS: self._queries.stats,
            Op.METRICS: self._metrics.read,
            Op.COLLECT: self._deleter.collect,
            Op.TRASH_LIST: self.trash.listed,
            Op.PING: self._ping,
        }
        return without_arguments[op]()

    async def _freeze(self, args: FreezeArgs, progress: ProgressSink) -> TimedFreeze:
        result = await self._freezer.freeze(args, progress)
        await self.auto.prune_after(args, result)
        return result

    async def _tag(self, args: TagArgs) -> Tagged:
        name = check_window_name(args.window_name)
        add, remove = check_tags(args.add), check_tags(args.remove)
        description = None if args.description is None else check_description(args.description)
        if args.new_name is not None:
            name = await finish_even_if_cancelled(self._rename(name, check_window_name(args.new_name)))
        row = await finish_even_if_cancelled(
            self._engine.catalog.run(lambda catalog: catalog.tag_window(name, add, remove, description, now_micros()))
        )
        return Tagged(window_name=row.name, tags=list(row.tags), description=row.description)

    async def _rename(self, name: str, new_name: str) -> str:
        """Rename the window and return its new name. Sessions and salts that may load it still may."""
        self._engine.freezes.require_free(new_name)
        async with self._engine.chunk_lock:
            await self._engine.catalog.run(lambda catalog: catalog.rename_window(name, new_name, now_micros()))
            self._engine.thaw_bindings.unbind(name)
            await self._thawer.rebind()
        return new_name

    async def _expire_some(self) -> None:
        await self._engine.on_engine_thread(lambda side: side.expire_some())

    async def _ping(self) -> EngineInfo:
        return EngineInfo(model=self._engine.model)
