"""Answers questions that change nothing: lists, status, statistics.

The answers come from the catalog and from the workers' last reports. Only the sessions are asked of the engine thread,
for a short time. A list shows their last known state if the engine is too busy to answer. Control thread.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from cwm_connector.catalog import results
from cwm_connector.catalog.base import Catalog, CatalogTotals, ChunkRow, TierTotals, WindowQuery, WindowRow
from cwm_connector.catalog.results import LiveSession, SessionState
from cwm_connector.catalog.session_pages import SessionEvent, SessionRow
from cwm_connector.control.async_helpers import wait_done
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_window_name
from cwm_connector.core.speaker import check_session_id
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.operations.auto_freeze.freezer import AutoFreezer
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.observation.transfers import Transfers
from cwm_connector.protocol.calls import ListArgs, ResumableArgs, SessionsArgs, StatusArgs, TokensArgs
from cwm_connector.protocol.results import Resumable, SessionItem, SessionList, Status, WindowList, WindowTokens
from cwm_connector.protocol.stats import KvStore, StoreStats, TierStats, TrashStats
from cwm_connector.sessions.views import SessionView
from cwm_connector.settings import AutoThaw

REMEMBERED_WINDOWS: Final = 1024
"""Windows whose chunk keys are kept, so that the next list need not read them again."""
LIST_WAITS_S: Final = 0.01
"""For the engine thread. A busy engine takes seconds for a step, and the list shows its last answer instead."""
STATUS_WAITS_S: Final = 0.5
"""For the engine thread when it answers nobody, or when one session is asked for, which may have begun a moment ago."""

OFFERED: Final = 3
"""Windows of other sessions that a session without windows is offered."""
OFFERED_FROM: Final = 20
"""The newest windows, of which those that the engine can't use are left out."""

Sessions = tuple[list[tuple[SessionView, int]], bool]
"""The engine's sessions with their cached tokens, and True if the engine has just answered (else its last answer)."""


class Queries:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, auto: AutoFreezer, transfers: Transfers) -> None:
        self._engine = engine
        self._auto = auto
        self._transfers = transfers
        self._keys_of: OrderedDict[tuple[str, int], tuple[ChunkKey, ...]] = OrderedDict()
        """By name and creation time: a name can be used again, a window never changes."""
        self._last_views: list[tuple[SessionView, int]] = []
        self._pending_views: Future[list[tuple[SessionView, int]]] | None = None

    async def list_windows(self, args: ListArgs) -> WindowList:
        """Return one page of windows. Raises: `Code.ARGUMENT` for arguments that can't be a query."""
        query = results.parse_list_args(args)

        def read(catalog: Catalog) -> WindowList:
            return results.window_page(catalog.list_windows(query), query, lambda row: self._tier_of(catalog, row))

        return await self._engine.catalog.run(read)

    async def status(self, args: StatusArgs) -> Status:
        """Return the status of one window or one session.

        Raises: `Code.SESSION_ID`, `Code.WINDOW_NAME`, `Code.ARGUMENT`, `Code.SESSION_NOT_FOUND`,
        `Code.WINDOW_NOT_FOUND`.
        """
        if (args.window_name is None) == (args.session_id is None):
            raise CWMError(Code.ARGUMENT, "give either window_name or session_id")
        if args.window_name is not None:
            return await self._window_status(check_window_name(args.window_name), args.include_blocks)
        return await self._session_status(check_session_id(args.session_id or ""))

    async def token_ids(self, args: TokensArgs) -> WindowTokens:
        """Return a window's exact token ids, little-endian int32.

        Raises: `Code.WINDOW_NAME`, `Code.WINDOW_NOT_FOUND`.
        """
        name = check_window_name(args.window_name)
        ids = await self._engine.catalog.run(lambda catalog: catalog.token_ids_of(name))
        return WindowTokens(window_name=name, token_ids=ids)

    async def sessions(self, args: SessionsArgs) -> SessionList:
        """Return one page of sessions: the engine's own, then those that only the catalog remembers."""
        wait_s = LIST_WAITS_S if self._engine.scheduler.is_answering else STATUS_WAITS_S
        live = await self._live_items(wait_s)
        return await self._engine.catalog.run(lambda catalog: results.session_page(live, args, catalog.sessions))

    async def resumable(self, args: ResumableArgs) -> Resumable:
        """Return what a session that is resumed can load. Raises: `Code.SESSION_ID`."""
        session_id = check_session_id(args.session_id)

        def usable(catalog: Catalog, query: WindowQuery) -> list[WindowRow]:
            rows = catalog.list_windows(query).windows
            ours = [row for row in rows if not row.damaged and not row.private]
            return [row for row in ours if self._engine.passport.first_difference(row.passport) is None]

        def read(catalog: Catalog) -> Resumable:
            own = usable(catalog, WindowQuery(session_id=session_id, limit=OFFERED_FROM))
            others = [] if own else usable(catalog, WindowQuery(limit=OFFERED_FROM))
            return Resumable(
                automatic=self._engine.settings.auto_thaw is not AutoThaw.OFF,
                window_name=own[0].name if own else None,
                restorable_tokens=own[0].restorable_tokens if own else 0,
                others=[row.name for row in others[:OFFERED]],
            )

        return await self._engine.catalog.run(read)

    async def stats(self) -> StoreStats:
        """Return how full the tiers are and how often they were of use."""

        def read(catalog: Catalog) -> tuple[CatalogTotals, TrashStats, Sequence[ChunkRow]]:
            resident = catalog.stored(self._engine.locations.in_memory())
            return catalog.totals(), results.trash_stats(catalog.trash.totals()), tuple(resident.values())

        totals, trash, resident = await self._engine.catalog.run(read)
        hits, misses = self._engine.metrics.hits_and_misses()
        settings = self._engine.settings
        in_memory = TierTotals(len(resident), sum(row.size_bytes for row in resident))
        tiers: dict[str, TierStats | None] = {TierName.CPU.value: _tier(in_memory, settings.cpu_cache_bytes)}
        for name in TierName.durable():
            tier = self._engine.durable_tiers.get(name)
            limit = None if tier is None else await asyncio.to_thread(tier.limit_bytes)
            tiers[name.value] = None if tier is None else _tier(totals.tiers[name], limit)
        return StoreStats(
            kv_store=KvStore(
                total_blocks=totals.chunks,
                total_bytes=totals.stored_bytes,
                hit_rate=self._engine.metrics.hit_rate(),
                hits=hits,
                misses=misses,
                dedup_ratio=totals.referenced_bytes / totals.stored_bytes if totals.stored_bytes else None,
                tiers=tiers,
                trash=trash,
            ),
            transfers=[*self._engine.freezes.listed(), *self._transfers.listed()],
        )

    # --- inside ---

    def _tier_of(self, catalog: Catalog, row: WindowRow) -> str | None:
        """Return the tier that a thaw would read. None if no tier is known to have a chunk or the row is damaged."""
        window = (row.name, row.created_at)
        keys = self._keys_of.get(window)
        if keys is None:
            try:
                chunks = catalog.chunks_of(row.name)
            except CWMError as problem:
                if problem.code is not Code.CORRUPT:
                    raise
                return None
            self._engine.locations.load_from_catalog(chunks)
            keys = self._keys_of[window] = tuple(chunk.key for chunk in chunks)
            while len(self._keys_of) > REMEMBERED_WINDOWS:
                self._keys_of.popitem(last=False)
        return results.tier_to_read(self._engine.locations.tiers_of(keys), len(keys))

    async def _window_status(self, name: str, include_blocks: bool) -> Status:
        # In this order: a freeze is under way until its window can be found in the catalog.
        freezing = self._engine.freezes.status(name, self._engine.model)
        if freezing is not None:
            return freezing

        def read(catalog: Catalog) -> Status:
            chunks = catalog.chunks_of(name)
            self._engine.locations.load_from_catalog(chunks)
            return results.window_status(
                catalog.window(name),
                chunks,
                catalog.children(name),
                self._engine.locations,
                include_blocks=include_blocks,
                hit_rate=self._engine.metrics.hit_rate(),
                proof=catalog.proof_of(name),
            )

        try:
            return await self._engine.catalog.run(read)
        except CWMError as problem:
            failure = self._engine.freezes.failure(name)
            if problem.code is not Code.WINDOW_NOT_FOUND or failure is None:
                raise
            raise CWMError(
                problem.code, f"no window named {name!r}; its freeze failed: {failure}", window_name=name
            ) from None

    async def _session_status(self, session_id: str) -> Status:
        live = await self._live_items(STATUS_WAITS_S)
        row = await self._engine.catalog.run(lambda catalog: catalog.session(session_id))
        item = next((each for each in live if each.session_id == session_id), None)
        if item is None and row is not None:
            item = results.session_item(row)
        if item is None:
            raise CWMError(
                Code.SESSION_NOT_FOUND,
                f"no session {session_id!r}; session_list shows the ones that are known",
                session_id=session_id,
            )
        return results.session_status(item, row)

    async def _live_items(self, wait_s: float) -> list[SessionItem]:
        """Return the engine's sessions, last active first."""
        live, fresh = await self._live_sessions(wait_s)
        ids = [view.session_id for view, _ in live]
        stored = await self._engine.catalog.run(lambda catalog: catalog.sessions_of(ids))
        items = []
        for view, cached in live:
            row = stored.get(view.session_id)
            state = _state(view, row)
            session = LiveSession(
                session_id=view.session_id,
                state=state,
                model=self._engine.model,
                token_count=view.token_count,
                heads=len(view.heads),
                head_names=view.heads,
                cached_tokens=cached if fresh else None,
                created_at=view.created_at,
                last_active_at=view.last_active_at,
                title=view.title,
                auto_freeze_at=None if view.running or state is not SessionState.ACTIVE else self._auto.due_at(view),
                head=view.head or None,
                head_reason=None if view.head_reason is None else view.head_reason.sentence,
            )
            items.append(results.live_session_item(session, row))
        return items

    async def _live_sessions(self, wait_s: float) -> Sessions:
        pending = self._pending_views
        if pending is not None and pending.done():  # since the last list has given up waiting
            if pending.exception() is None:
                self._last_views = pending.result()
            pending = None
        if pending is None:
            pending = self._engine.step_queue.collect(self._engine.scheduler.session_views())
        self._pending_views = pending
        fresh = await wait_done(pending, wait_s)
        if fresh:
            self._last_views = pending.result()
        return self._last_views, fresh


def _tier(totals: TierTotals, limit_bytes: int | None) -> TierStats:
    return TierStats(blocks=totals.chunks, bytes=totals.stored_bytes, limit_bytes=limit_bytes)


def _state(view: SessionView, row: SessionRow | None) -> SessionState:
    """Return the session's state.

    It is frozen while a window holds its default head, and thawed until it speaks again.
    """
    if row is None or view.running or _has_gone_on(view, row):
        return SessionState.EXPIRED if view.expired else SessionState.ACTIVE
    return SessionState(row.event.value)


def _has_gone_on(view: SessionView, row: SessionRow) -> bool:
    if row.event is SessionEvent.FROZEN and view.unfrozen_tokens is not None and not view.expired:
        return view.unfrozen_tokens > 0
    return view.last_active_at > row.updated_at
