"""Freezes sessions without being asked, once a second and before a shutdown.

    once a second   sessions that were active since their last freeze and
                        are near eviction (at once, while their blocks are still there),
                        have grown by the token threshold again, or
                        have been idle for the time-out
    shutdown        every session that was active since its last freeze, while the engine still steps

Evicted blocks are never computed again for it. The window then ends before them and says so. Each freeze is an ordinary
one. A failure (a full disk, say) is logged and tried again later. Control thread.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cwm_connector.catalog.base import Catalog, WindowRow
from cwm_connector.catalog.results import iso
from cwm_connector.control.async_helpers import finish_even_if_cancelled, run_periodically
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros, now_micros
from cwm_connector.operations.auto_freeze import policy as policies
from cwm_connector.operations.auto_freeze.mark import TAG, Mark, Reason, mark_of
from cwm_connector.operations.auto_freeze.retention import Retention
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.delete import Deleter
from cwm_connector.operations.freeze.freezer import Freezer
from cwm_connector.protocol.calls import FreezeArgs, PolicyArgs
from cwm_connector.protocol.results import AutoFreezePolicy, Frozen, NextFreeze
from cwm_connector.step.scheduler import FreezableHead

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
NEAR_EVICTION: Final = 0.25
"""Share of vLLM's blocks. A session is frozen if its end is among the blocks that vLLM will take next. At 50,000
tokens a second this leaves one H100 some seconds."""
RETRY_AFTER_S: Final = 300.0
SHUTDOWN_LIMIT_S: Final = 15.0
"""`cwm serve` gives vLLM 20 s to end."""
NOTE: Final = "auto-freeze policy"
_NAMES_TRIED: Final = 20
_REMEMBERED: Final = 16_384
"""Sessions. Beyond that, all are forgotten and looked up in the catalog again."""

_TEXTS: Final = {
    Reason.IDLE: "idle for {policy.idle_timeout_minutes:g} minutes",
    Reason.THRESHOLD: "{tokens} tokens, over {policy.token_threshold} more than at its last freeze",
    Reason.EVICTION: "vLLM was about to reuse its blocks",
    Reason.SHUTDOWN: "the engine was stopped",
}


class AutoFreezer:
    """One for each engine. Call `load_from_catalog` first. `run` is a task of its own."""

    def __init__(self, engine: EngineContext, freezer: Freezer, deleter: Deleter) -> None:
        self._engine = engine
        self._freezer = freezer
        self._retention = Retention(engine, deleter)
        self._settings = policies.initial(engine.settings)
        self._policy = self._settings
        self._frozen_at: dict[str, Micros] = {}
        """The last activity of each session that its newest window holds."""
        self._crossings: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    async def load_from_catalog(self) -> None:
        """Load the changes to the policy of before a restart. A note that can't be read is logged and kept."""
        note = await self._engine.catalog.run(lambda catalog: catalog.noted(NOTE))
        try:
            self._policy = policies.from_note(note, self._settings)
        except CWMError as problem:
            logger.warning("auto-freeze: %s", problem)

    # --- called by operations ---

    async def policy(self, args: PolicyArgs) -> AutoFreezePolicy:
        """Change the policy as `args` say and return the one in force.

        Raises: `Code.ARGUMENT`, what the catalog raises.
        """
        policy = policies.changed(self._settings if args.reset else self._policy, args)
        if args != PolicyArgs():
            note = policies.as_note(policy, self._settings)
            await finish_even_if_cancelled(self._engine.catalog.run(lambda catalog: catalog.note(NOTE, note)))
            self._policy = policy
            self._crossings.clear()
        return AutoFreezePolicy(
            enabled=policy.enabled,
            idle_timeout_minutes=policy.idle_timeout_minutes,
            token_threshold=policy.token_threshold,
            naming_pattern=policy.naming_pattern,
            keep_last=policy.keep_last,
            tags=list(policy.tags),
            next_action=await self._next_action(),
        )

    def due_at(self, session_id: str, last_active_at: Micros, token_count: int) -> Micros | None:
        """Return when the session will be frozen if it stays idle. None if it won't be."""
        if token_count < self._engine.settings.chunk_tokens or self._frozen_at.get(session_id, -1) >= last_active_at:
            return None
        return self._policy.idle_due_at(last_active_at)

    async def prune_after(self, args: FreezeArgs) -> None:
        """Delete windows beyond the retention limit after a client's freeze that carries the mark of a hook."""
        if not self._policy.enabled or mark_of(args.description, args.tags) is None:
            return
        try:
            await self._retention.prune(args.session_id, self._policy.keep_last)
        except CWMError as problem:
            logger.warning("auto-freeze: old windows of session %s stay for now: %s", args.session_id, problem)

    # --- the task ---

    async def run(self) -> None:
        """Call `tick` once a second until cancelled. Failures are logged and tried again."""
        await run_periodically(self.tick, TICK_S, "auto-freeze")

    async def tick(self) -> None:
        """Freeze the sessions that are due, the most urgent first."""
        if not self._policy.enabled:
            return
        now = now_micros()
        for session in _most_urgent_first(await self._freezable()):
            reason = await self._reason(session, now)
            if reason is not None:
                await self._freeze(session, reason)

    async def freeze_before_shutdown(self) -> None:
        """Freeze every session that was active since its last freeze, the last active first, within the time limit."""
        if not self._policy.enabled:
            return
        try:
            async with asyncio.timeout(SHUTDOWN_LIMIT_S):
                for session in await self._freezable():
                    if not await self._is_frozen(session):
                        await self._freeze(session, Reason.SHUTDOWN)
        except TimeoutError:
            logger.warning("auto-freeze: not every session could be frozen before the shutdown")
        except CWMError as problem:
            logger.warning("auto-freeze before the shutdown: %s", problem)

    # --- inside ---

    async def _freezable(self) -> list[FreezableHead]:
        heads = await self._engine.on_engine_thread(lambda side: side.freezable(NEAR_EVICTION))
        return [
            head for head in heads if head.is_default and head.last_active_at > self._frozen_at.get(head.session_id, -1)
        ]

    async def _reason(self, session: FreezableHead, now: Micros) -> Reason | None:
        """Return why the session is to be frozen now. None if it is not."""
        if self._not_before.get(session.session_id, 0.0) > time.monotonic():
            return None
        due_at = self._policy.idle_due_at(session.last_active_at)
        crossings = self._policy.crossings(session.token_count)
        if session.near_eviction:
            reason = Reason.EVICTION
        elif crossings and crossings > await self._crossed(session.session_id):
            reason = Reason.THRESHOLD
        elif due_at is not None and due_at <= now and not session.running:
            reason = Reason.IDLE
        else:
            return None
        return None if await self._is_frozen(session) else reason

    async def _crossed(self, session_id: str) -> int:
        if session_id not in self._crossings:
            window = await self._last_window(session_id)
            self._remember(self._crossings, session_id, self._policy.crossings(window.token_count if window else 0))
        return self._crossings[session_id]

    async def _is_frozen(self, session: FreezableHead) -> bool:
        """Return True if a window holds all of the session, whoever froze it."""
        window = await self._last_window(session.session_id)
        frozen = window is not None and window.created_at >= session.last_active_at
        if frozen:
            self._remember(self._frozen_at, session.session_id, session.last_active_at)
        return frozen

    async def _last_window(self, session_id: str) -> WindowRow | None:
        def read(catalog: Catalog) -> WindowRow | None:
            row = catalog.session(session_id)
            return catalog.window(row.windows[0]) if row and row.windows else None

        return await self._engine.catalog.run(read)

    async def _freeze(self, session: FreezableHead, reason: Reason) -> None:
        """Freeze the session and delete its windows beyond the retention limit. A failure is logged, not raised."""
        session_id = session.session_id
        try:
            result = await self._freeze_under_a_new_name(session, reason)
        except CWMError as problem:
            self._engine.metrics.auto_freezes.labels(reason.value, f"CWM-{int(problem.code)}").inc()
            if problem.code in (Code.CHUNK_MISSING, Code.SESSION_NOT_FOUND, Code.STATE):
                # None of it is left, or none of it can be frozen. That holds until the session is active again.
                self._remember(self._frozen_at, session_id, session.last_active_at)
                logger.info("session %s is not frozen (%s): %s", session_id, reason.value, problem)
            else:
                self._remember(self._not_before, session_id, time.monotonic() + RETRY_AFTER_S)
                logger.warning("session %s can't be frozen now (%s): %s", session_id, reason.value, problem)
            return
        self._engine.metrics.auto_freezes.labels(reason.value, "done").inc()
        logger.info(
            "session %s frozen as %s (%s): %d of %d tokens",
            session_id,
            result.window_name,
            reason.value,
            result.captured_tokens,
            result.token_count,
        )
        self._remember(self._frozen_at, session_id, session.last_active_at)
        self._remember(self._crossings, session_id, self._policy.crossings(result.token_count))
        await self._retention.prune(session_id, self._policy.keep_last)

    async def _freeze_under_a_new_name(self, session: FreezableHead, reason: Reason) -> Frozen:
        policy, session_id = self._policy, session.session_id
        mark = Mark(reason, await self._retention.next_generation(session_id))
        description = mark.described(_TEXTS[reason].format(policy=policy, tokens=session.token_count))
        stem = policy.window_name(session_id, now_micros(), mark.generation)
        for name in _names(stem):
            args = FreezeArgs(
                session_id=session_id, window_name=name, description=description, tags=[TAG, *policy.tags]
            )
            try:
                return await self._freezer.freeze(args, lambda *_: None, recompute=False)
            except CWMError as problem:
                if problem.code is not Code.WINDOW_EXISTS:
                    raise
        taken = f"{stem} and {_NAMES_TRIED - 1} names after it are taken"
        raise CWMError(Code.WINDOW_EXISTS, f"{taken}; delete some of those windows")

    async def _next_action(self) -> NextFreeze | None:
        """Return the session whose idle time-out ends first."""
        if not self._policy.enabled:
            return None
        idle = [
            (due_at, session.session_id)
            for session in await self._freezable()
            if (due_at := self._policy.idle_due_at(session.last_active_at)) is not None and not session.running
        ]
        if not idle:
            return None
        due_at, session_id = min(idle)
        return NextFreeze(session_id=session_id, reason=Reason.IDLE.value, due_at=iso(due_at))

    def _remember(self, table: dict[str, Any], session_id: str, value: Any) -> None:
        if len(table) >= _REMEMBERED:
            table.clear()
        table[session_id] = value


def _most_urgent_first(sessions: Sequence[FreezableHead]) -> list[FreezableHead]:
    """Return sessions near eviction first, the longest unused at the front, because it is evicted next."""
    return sorted(sessions, key=lambda session: (not session.near_eviction, session.last_active_at))


def _names(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}-{number}" for number in range(2, _NAMES_TRIED + 1))
