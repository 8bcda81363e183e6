"""Freezes heads of sessions without being asked, once a second and before a shutdown.

    once a second   heads with tokens that no window holds, which
                        are near eviction (at once, while their blocks are still there),
                        have passed another multiple of the token threshold since they were frozen, or
                        have been idle for the time-out
    shutdown        every head with such tokens, while the engine still steps

The index of the sessions counts the tokens of each head that no window holds, and every freeze that commits lowers that
count. No time is compared for it. After a restart the catalog says once for each head what its windows hold already.

Evicted blocks are never computed again for it. The window then ends before them and says so. Each freeze is an ordinary
one. A failure (a full disk, say) is logged and tried again later, and it holds up no other head. Control thread.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cwm_connector.catalog.results import iso
from cwm_connector.control.async_helpers import finish_even_if_cancelled, run_periodically
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros, now_micros
from cwm_connector.operations.auto_freeze import policy as policies
from cwm_connector.operations.auto_freeze.coverage import covered_tokens
from cwm_connector.operations.auto_freeze.mark import TAG, Mark, Reason, mark_of
from cwm_connector.operations.auto_freeze.retention import Retention
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.delete import Deleter
from cwm_connector.operations.freeze.freezer import Freezer
from cwm_connector.protocol.calls import FreezeArgs, PolicyArgs
from cwm_connector.protocol.results import AutoFreezePolicy, Frozen, NextFreeze
from cwm_connector.sessions.views import SessionView
from cwm_connector.step.surveys import FreezableHead

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
QUIET_TICKS: Final = 10
"""Ticks between two looks at an engine that computes nothing. Each look makes it step, and vLLM's workers then spin for
a second, so that a look every second would keep a core busy."""
NEAR_EVICTION: Final = 0.25
"""Share of vLLM's blocks. A head is frozen if its end is among the blocks that vLLM will take next. At 50,000 tokens a
second this leaves one H100 some seconds."""
RETRY_AFTER_S: Final = 300.0
SHUTDOWN_LIMIT_S: Final = 15.0
"""`cwm serve` gives vLLM 20 s to end."""
NOTE: Final = "auto-freeze policy"
_NAMES_TRIED: Final = 20
_NEXT_LOOKED_AT: Final = 16
"""Heads that are looked up in the catalog to find the next freeze."""
_REMEMBERED: Final = 16_384
"""Heads. Beyond that, all are forgotten and tried again."""
_FINAL: Final = frozenset({Code.CHUNK_MISSING, Code.SESSION_NOT_FOUND, Code.STATE})
"""None of the head is left, or none of it can be frozen. That holds until it is active again."""

_TEXTS: Final = {
    Reason.IDLE: "idle for {policy.idle_timeout_minutes:g} minutes",
    Reason.THRESHOLD: "{tokens} tokens, over a multiple of {policy.token_threshold} since its last freeze",
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
        self._one_at_a_time = asyncio.Lock()
        self._steps_seen = -1
        self._quiet_ticks = 0
        self._given_up: dict[tuple[str, str], int] = {}
        """By session and head: the activity up to which nothing more of the head can be frozen."""
        self._not_before: dict[tuple[str, str], float] = {}

    async def load_from_catalog(self) -> None:
        """Load the changes to the policy of before a restart. A note that can't be read is logged and kept."""
        note = await self._engine.catalog.run(lambda catalog: catalog.noted(NOTE))
        try:
            self._policy = policies.from_note(note, self._settings)
        except CWMError as problem:
            logger.warning("auto-freeze: %s", problem)
        self._protect_unfrozen()

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
            self._protect_unfrozen()
        return AutoFreezePolicy(
            enabled=policy.enabled,
            idle_timeout_minutes=policy.idle_timeout_minutes,
            token_threshold=policy.token_threshold,
            naming_pattern=policy.naming_pattern,
            keep_last=policy.keep_last,
            tags=list(policy.tags),
            next_action=await self._next_action(),
        )

    def due_at(self, view: SessionView) -> Micros | None:
        """Return when the session's default head will be frozen if it stays idle. None if it won't be."""
        if view.head_active_at is None or not view.unfrozen_tokens:
            return None
        if view.token_count < self._engine.settings.chunk_tokens:
            return None
        if self._given_up.get((view.session_id, view.head), -1) >= view.head_activity:
            return None
        return self._policy.idle_due_at(view.head_active_at)

    async def prune_after(self, args: FreezeArgs, frozen: Frozen) -> None:
        """Delete windows beyond the retention limit after a client's freeze that carries the mark of a hook."""
        if not self._policy.enabled or mark_of(args.description, args.tags) is None:
            return
        try:
            await self._retention.prune(frozen.session_id, frozen.head or "", self._policy.keep_last)
        except CWMError as problem:
            logger.warning("auto-freeze: old windows of session %s stay for now: %s", frozen.session_id, problem)

    # --- the task ---

    async def run(self) -> None:
        """Call `tick` once a second until cancelled, or less often while the engine computes nothing.

        Failures are logged and tried again.
        """
        await run_periodically(self.tick_unless_quiet, TICK_S, "auto-freeze")

    async def tick_unless_quiet(self) -> None:
        """Call `tick` if the engine has computed anything since the last look, or after `QUIET_TICKS` calls."""
        steps = self._engine.scheduler.computing_steps
        if steps == self._steps_seen and self._quiet_ticks < QUIET_TICKS - 1:
            self._quiet_ticks += 1
            return
        self._steps_seen, self._quiet_ticks = steps, 0
        await self.tick()

    async def tick(self) -> None:
        """Freeze the heads that are due, the most urgent first."""
        if not self._policy.enabled:
            return
        for head in _most_urgent_first(await self._freezable()):
            async with self._one_at_a_time:
                await self._freeze_if_due(head)

    async def freeze_before_shutdown(self, limit_s: float = SHUTDOWN_LIMIT_S) -> None:
        """Freeze every head with tokens that no window holds, within the time limit.

        The sessions' default heads come first, and of these the one that was active last.
        """
        if not self._policy.enabled:
            return
        left: list[FreezableHead] | None = None
        try:
            async with asyncio.timeout(limit_s), self._one_at_a_time:
                left = _conversations_first(await self._freezable())
                while left:
                    await self._freeze_unless_covered(left[0], Reason.SHUTDOWN)
                    left.pop(0)
        except TimeoutError:
            unsaved = "no head" if left is None else f"{len(left)} of the heads that auto-freeze watches not"
            logger.warning("auto-freeze: %s could be frozen before the shutdown", unsaved)
        except Exception as problem:
            logger.warning("auto-freeze before the shutdown failed: %s", _named(problem))

    # --- inside ---

    def _protect_unfrozen(self) -> None:
        """Tell the index of the sessions what to drop last. Nobody waits, because the engine may not step yet."""
        enabled = self._policy.enabled
        self._engine.step_queue.call(lambda: self._engine.scheduler.protect_unfrozen(enabled))

    async def _freezable(self) -> list[FreezableHead]:
        """Return the heads with unfrozen tokens, without those of which nothing more can be frozen."""
        heads = await self._engine.collect(self._engine.scheduler.freezable(NEAR_EVICTION))
        return [head for head in heads if self._given_up.get(_key(head), -1) < head.activity]

    async def _freeze_if_due(self, head: FreezableHead) -> None:
        reason = self._reason(head, now_micros())
        if reason is not None and self._not_before.get(_key(head), 0.0) <= time.monotonic():
            await self._freeze_unless_covered(head, reason)

    async def _freeze_unless_covered(self, head: FreezableHead, reason: Reason) -> None:
        """Freeze a head, if no window from before a restart holds it. A failure of any kind is logged, not raised."""
        try:
            unfrozen = await self._unfrozen_tokens(head)
            if unfrozen and (reason is not Reason.THRESHOLD or self._has_crossed(head.token_count, unfrozen)):
                await self._freeze(head, reason)
        except Exception as problem:
            self._note_failure(head, reason, problem)

    def _reason(self, head: FreezableHead, now: Micros) -> Reason | None:
        """Return why the head is to be frozen now. None if it is not."""
        due_at = self._policy.idle_due_at(head.last_active_at)
        if head.near_eviction:
            return Reason.EVICTION
        if self._has_crossed(head.token_count, head.unfrozen_tokens):
            return Reason.THRESHOLD
        if due_at is not None and due_at <= now and not head.running:
            return Reason.IDLE
        return None

    def _has_crossed(self, tokens: int, unfrozen: int) -> bool:
        """Return whether the head has passed a multiple of the threshold since it was frozen."""
        return self._policy.crossings(tokens) > self._policy.crossings(max(0, tokens - unfrozen))

    async def _unfrozen_tokens(self, head: FreezableHead) -> int:
        """Return how many tokens of the head no window holds now. A freeze may have ended since the head was listed."""
        session_id, name = _key(head)
        if not head.coverage_known:
            snapshot = await self._engine.on_engine_thread(lambda side: side.snapshot(session_id, name))
            tokens = await covered_tokens(self._engine, snapshot)
            await self._engine.on_engine_thread(lambda side: side.mark_covered(session_id, name, tokens))
        return await self._engine.on_engine_thread(lambda side: side.unfrozen_tokens(session_id, name))

    async def _freeze(self, head: FreezableHead, reason: Reason) -> None:
        """Freeze the head and delete its windows beyond the retention limit."""
        result = await self._freeze_under_a_new_name(head, reason)
        self._engine.metrics.auto_freezes.labels(reason.value, "done").inc()
        size = self._engine.geometry.block_tokens
        if result.captured_tokens < result.token_count - result.token_count % size:
            self._remember(self._given_up, head, head.activity)  # the rest was evicted
        try:
            await self._retention.prune(head.session_id, head.head, self._policy.keep_last)
        except CWMError as problem:
            logger.warning("auto-freeze: old windows of session %s stay for now: %s", head.session_id, problem)

    def _note_failure(self, head: FreezableHead, reason: Reason, problem: Exception) -> None:
        """Log and count a failure, and decide when the head is tried again."""
        code = f"CWM-{int(problem.code)}" if isinstance(problem, CWMError) else "failed"
        self._engine.metrics.auto_freezes.labels(reason.value, code).inc()
        if isinstance(problem, CWMError) and problem.code in _FINAL:
            self._remember(self._given_up, head, head.activity)
            logger.info("session %s, head %s, is not frozen (%s): %s", *_key(head), reason.value, problem)
            return
        self._remember(self._not_before, head, time.monotonic() + RETRY_AFTER_S)
        logger.warning("session %s, head %s, can't be frozen now (%s): %s", *_key(head), reason.value, _named(problem))

    async def _freeze_under_a_new_name(self, head: FreezableHead, reason: Reason) -> Frozen:
        policy, session_id = self._policy, head.session_id
        mark = Mark(reason, await self._retention.next_generation(session_id))
        description = mark.described(_TEXTS[reason].format(policy=policy, tokens=head.token_count))
        speaker = session_id if head.is_default else f"{session_id}-{head.head}"
        stem = policy.window_name(speaker, now_micros(), mark.generation)
        for name in _names(stem):
            args = FreezeArgs(
                session_id=session_id,
                window_name=name,
                description=description,
                tags=[TAG, *policy.tags],
                head=head.head,
            )
            try:
                return await self._freezer.freeze(args, lambda *_: None, unasked=reason.value)
            except CWMError as problem:
                if problem.code is not Code.WINDOW_EXISTS:
                    raise
        taken = f"{stem} and {_NAMES_TRIED - 1} names after it are taken"
        raise CWMError(Code.WINDOW_EXISTS, f"{taken}; delete some of those windows")

    async def _next_action(self) -> NextFreeze | None:
        """Return the head whose idle time-out ends first."""
        if not self._policy.enabled:
            return None
        idle = [
            (due_at, head)
            for head in await self._freezable()
            if (due_at := self._policy.idle_due_at(head.last_active_at)) is not None and not head.running
        ]
        for due_at, head in sorted(idle, key=lambda pair: pair[0])[:_NEXT_LOOKED_AT]:
            if await self._is_unfrozen(head):
                return NextFreeze(
                    session_id=head.session_id,
                    reason=Reason.IDLE.value,
                    due_at=iso(due_at),
                    head=None if head.is_default else head.head,
                )
        return None

    async def _is_unfrozen(self, head: FreezableHead) -> bool:
        try:
            return await self._unfrozen_tokens(head) > 0
        except Exception as problem:  # it may have gone since it was listed
            logger.debug("session %s, head %s: %s", *_key(head), _named(problem))
            return False

    def _remember(self, table: dict[tuple[str, str], Any], head: FreezableHead, value: Any) -> None:
        if len(table) >= _REMEMBERED:
            table.clear()
        table[_key(head)] = value


def _key(head: FreezableHead) -> tuple[str, str]:
    return head.session_id, head.head


def _named(problem: Exception) -> str:
    """Return what to log of a failure. The text of an unexpected exception may hold tokens or a salt."""
    return str(problem) if isinstance(problem, CWMError) else type(problem).__name__


def _most_urgent_first(heads: Sequence[FreezableHead]) -> list[FreezableHead]:
    """Return heads near eviction first, the longest unused at the front, because it is evicted next."""
    return sorted(heads, key=lambda head: (not head.near_eviction, head.last_active_at))


def _conversations_first(heads: Sequence[FreezableHead]) -> list[FreezableHead]:
    """Return the sessions' default heads before all others, the last active one first."""
    return sorted(heads, key=lambda head: (not head.is_default, -head.activity))


def _names(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}-{number}" for number in range(2, _NAMES_TRIED + 1))
