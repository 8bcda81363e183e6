"""Report each freeze and each thaw: one line of the log, a count, and a span where vLLM has tracing on.

A line names the head and the window, and how much was copied in which time. It does not name the session, because a
client's own ids don't belong in a log. A span does. Control thread.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.metrics import Metrics
from cwm_connector.protocol.results import Thawed, TimedFreeze

logger = logging.getLogger(__name__)

T = TypeVar("T")
Attributes = dict[str, str | int | float]
RecordSpan = Callable[[str, int, int, Mapping[str, str | int | float]], None]
"""(name, start and end in nanoseconds since the epoch, attributes): hands a span to vLLM's tracing. Never blocks."""

_REFUSALS: Final = frozenset(
    {
        Code.SESSION_ID,
        Code.WINDOW_NAME,
        Code.ARGUMENT,
        Code.SESSION_NOT_FOUND,
        Code.WINDOW_NOT_FOUND,
        Code.STATE,
        Code.WINDOW_EXISTS,
        Code.PASSPORT,
        Code.NOT_ALLOWED,
    }
)
"""Failures of the call and not of the engine."""


class Observer:
    """One for each engine. Control thread only."""

    def __init__(self, metrics: Metrics, record_span: RecordSpan | None = None) -> None:
        """`record_span`: None where vLLM has no tracing."""
        self._metrics = metrics
        self._record_span = record_span

    async def freeze(self, work: Awaitable[TimedFreeze], window: str, unasked: str | None) -> TimedFreeze:
        """Await a freeze, report it and return its result. Raises: what it raises.

        `unasked`: why the engine freezes by itself. The auto-freeze logs its failures then.
        """
        reason = unasked or "asked for"
        begun = time.time_ns()
        try:
            frozen = await work
        except BaseException as problem:
            evicted = unasked is not None and isinstance(problem, CWMError) and problem.code is Code.CHUNK_MISSING
            is_refused = evicted or _is_refused(problem)
            self._metrics.freezes.labels("refused" if is_refused else "failed").inc()
            self._failed("freeze", begun, window, problem, is_logged=unasked is None)
            raise
        self._metrics.freezes.labels("done").inc()
        chunks, tiers = frozen.block_count, _counts(frozen.tiers)
        logger.info(
            "froze head %s into window %s (%s): %d of %d tokens, %d chunks, %d new bytes, captured in %.3f s, "
            "durable in %.3f s (%s)",
            *(frozen.head, frozen.window_name, reason, frozen.captured_tokens, frozen.token_count),
            *(chunks, frozen.new_bytes, frozen.capture_ms / 1000, frozen.duration_ms / 1000, tiers),
        )
        self._done(
            "freeze",
            begun,
            {
                **_names(frozen.window_name, frozen.session_id),
                "cwm.head": frozen.head or "",
                "cwm.reason": reason,
                "cwm.tokens": frozen.captured_tokens,
                "cwm.recomputed_tokens": frozen.recomputed_tokens,
                "cwm.chunks": chunks,
                "cwm.new_bytes": frozen.new_bytes,
                "cwm.capture_seconds": frozen.capture_ms / 1000,
                "cwm.tiers": tiers,
            },
        )
        return frozen

    async def thaw(self, work: Awaitable[Thawed], window: str) -> Thawed:
        """Await a thaw, report it and return its result. Raises: what it raises."""
        begun = time.time_ns()
        try:
            thawed = await work
        except BaseException as problem:
            self._failed("thaw", begun, window, problem)
            raise
        tiers = _counts(thawed.restored_by_tier)
        logger.info(
            "thawed window %s: %d of %d tokens restorable in %.3f s (tokens by tier: %s)",
            *(thawed.window_name, thawed.restorable_tokens, thawed.token_count),
            *(thawed.restoration_time_ms / 1000, tiers or "none"),
        )
        self._done(
            "thaw",
            begun,
            {
                **_names(thawed.window_name, thawed.session_id),
                "cwm.tokens": thawed.token_count,
                "cwm.restorable_tokens": thawed.restorable_tokens,
                "cwm.tiers": tiers,
            },
        )
        return thawed

    def _failed(self, what: str, begun: int, window: str, problem: BaseException, *, is_logged: bool = True) -> None:
        """Record a failure as a span, and log it if it is one of the engine. Only the caller learns of a wrong call."""
        code = f"CWM-{int(problem.code)}" if isinstance(problem, CWMError) else type(problem).__name__
        if _is_refused(problem):
            self._done(what, begun, {"error.type": code})  # nobody has checked the name
            return
        if is_logged:
            # The text of an unexpected exception may hold tokens or a salt.
            shown = problem if isinstance(problem, CWMError) else code
            logger.warning("the %s of window %s failed: %s", what, window, shown)
        self._done(what, begun, {"error.type": code, "cwm.window": window})

    def _done(self, what: str, begun: int, attributes: Attributes) -> None:
        if self._record_span is None:
            return
        try:
            self._record_span(f"cwm.{what}", begun, time.time_ns(), attributes)
        except Exception as problem:  # what was frozen is frozen
            logger.warning("a span could not be recorded: %s", type(problem).__name__)


def _is_refused(problem: BaseException) -> bool:
    """Return whether the call was wrong or was withdrawn."""
    return isinstance(problem, asyncio.CancelledError) or (isinstance(problem, CWMError) and problem.code in _REFUSALS)


def _names(window: str, session_id: str) -> Attributes:
    return {"cwm.window": window, "cwm.session": session_id}


def _counts(by_tier: Mapping[str, int]) -> str:
    """Return "cpu 12, disk 12"."""
    return ", ".join(f"{tier} {count}" for tier, count in by_tier.items())
