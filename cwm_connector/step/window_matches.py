"""Find the windows that each request can load, without making the engine thread wait.

What is in memory is compared by the engine thread, a part of a long request in each step. For everything else a finder
on another thread is asked when the request is added, and vLLM is told to ask again until the finder has answered or
`ANSWER_LIMIT_S` is over. A request waits only if a window may help it: if its salt or its session has a thaw, or if it
begins with the first chunk of a window that is not private. A request with somebody else's salt, or with an invented
one, never waits.

Engine thread only. Nothing here blocks.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cwm_connector.core.identity import Geometry
from cwm_connector.core.keys.extras import PLAIN, Extras
from cwm_connector.core.speaker import parse_speaker
from cwm_connector.core.types import salt_hash
from cwm_connector.sessions.extras.carried import RequestExtras
from cwm_connector.sessions.thaw_bindings import BoundWindow, ThawBindings

if TYPE_CHECKING:
    from vllm.v1.request import Request

ANSWER_LIMIT_S: Final = 1.0
"""From vLLM's first question about a request. Later answers serve only later requests.

An answer takes milliseconds, unless the catalog is busy or the machine is. To compute a conversation takes seconds.
"""
COMPARED_AT_ONCE: Final = 8192
"""Tokens of a request that the engine thread compares with windows in one step. It takes half a millisecond."""
MAX_WAITING: Final = 64
"""Requests that wait for the finder. Further ones load only what is in memory."""


@dataclass(frozen=True, slots=True)
class WindowQuestion:
    """A request for which windows are to be found."""

    token_ids: Sequence[int] = field(repr=False)
    """The prompt. Nobody changes it."""
    max_blocks: int
    """Leading blocks that may be loaded. At least one token is left to compute."""
    session_id: str | None
    salted: bool
    anonymous: bool
    """Whether the request has neither an id nor a salt, so that it joins the conversation that it continues."""
    thawed: tuple[str, ...]
    """Windows that were thawed for the request and have to be read or compared."""
    extras: Extras = PLAIN


@dataclass(frozen=True, slots=True)
class FoundWindows:
    """The answer of the finder."""

    common: tuple[tuple[BoundWindow, int], ...] = ()
    """Windows that the request may load, each with the number of leading blocks that they have in common."""
    session_id: str | None = None
    """The anonymous session that the request continues."""


class WindowFinder(Protocol):
    """Answers questions on another thread."""

    def ask(self, question: WindowQuestion) -> "Future[FoundWindows] | None":
        """Start to look for windows. Return None at once if there can't be any."""


@dataclass(frozen=True, slots=True)
class Match:
    """The blocks of a window that a request will load."""

    window: BoundWindow
    from_block: int
    to_block: int
    automatic: bool
    """Whether no thaw has opened the window for this request."""


@dataclass(slots=True)
class _Waiting:
    session_id: str | None
    answer: "Future[FoundWindows] | None"
    """None while the files of the request's adapter are being checked."""
    deadline: float | None = None


class WindowMatches:
    """The windows of the requests that have been added and not finished."""

    def __init__(
        self,
        geometry: Geometry,
        thaw_bindings: ThawBindings,
        clock: Callable[[], float] = time.monotonic,
        extras: RequestExtras | None = None,
    ) -> None:
        self.finder: WindowFinder | None = None
        """None until the catalog is open."""
        self._geometry = geometry
        self._thaw_bindings = thaw_bindings
        self._clock = clock
        self._extras = extras or RequestExtras(geometry.block_tokens)
        self._waiting: dict[str, _Waiting] = {}
        self._common: dict[str, dict[BoundWindow, int]] = {}
        """By request: the windows that were compared with it, each with the number of common blocks."""
        self._equal: dict[str, dict[BoundWindow, int]] = {}
        """By request: the windows whose comparison goes on, each with the number of blocks that were equal so far."""
        self._continued: dict[str, str] = {}

    def added(self, request: "Request", session_id: str | None) -> bool:
        """Take a new request, and return whether it waits for the finder."""
        carried = self._extras.of(request)
        if self.finder is None or len(self._waiting) >= MAX_WAITING or carried.fault is not None:
            return False
        max_blocks = (request.num_tokens - 1) // self._geometry.block_tokens
        if max_blocks == 0:
            return False
        if carried.is_pending:
            self._waiting[request.request_id] = _Waiting(session_id, None)
            return True
        answer = self._ask(self.finder, request, session_id, max_blocks)
        if answer is not None:
            self._waiting[request.request_id] = _Waiting(session_id, answer)
        return answer is not None

    def _ask(
        self, finder: WindowFinder, request: "Request", session_id: str | None, max_blocks: int
    ) -> "Future[FoundWindows] | None":
        if (extras := self._extras.of(request).known) is None:
            return None
        names = self._thaw_bindings.names_of(session_id, _salt(request))
        at_once = request.num_tokens <= COMPARED_AT_ONCE and len(names) == len(self._bound(request, session_id))
        question = WindowQuestion(
            token_ids=request.prompt_token_ids or request.all_token_ids[: request.num_prompt_tokens],
            max_blocks=max_blocks,
            session_id=session_id,
            salted=bool(request.cache_salt),
            anonymous=is_anonymous(request),
            thawed=() if at_once else names,
            extras=extras.before(max_blocks * self._geometry.block_tokens),
        )
        return finder.ask(question)

    def is_waiting(self, request: "Request", from_block: int) -> bool:
        """Return whether the finder may still find more than the first `from_block` blocks, and take its answer."""
        waiting = self._waiting.get(request.request_id)
        if waiting is None:
            return False
        max_blocks = (request.num_tokens - 1) // self._geometry.block_tokens
        if waiting.answer is None and not self._extras.of(request).is_pending and self.finder is not None:
            waiting.answer = self._ask(self.finder, request, waiting.session_id, max_blocks)
            if waiting.answer is None:
                del self._waiting[request.request_id]
                return False
        if (waiting.answer is None or not waiting.answer.done()) and from_block < max_blocks:
            now = self._clock()
            if waiting.deadline is None:
                waiting.deadline = now + ANSWER_LIMIT_S
            if now < waiting.deadline:
                return True
        self._take(request.request_id)
        return False

    def is_comparing(self, request: "Request", session_id: str | None, from_block: int) -> bool:
        """Compare the next tokens of the request with its thawed windows. Return whether some are left to compare."""
        size = self._geometry.block_tokens
        limit = (request.num_tokens - 1) // size
        extras = self._extras.of(request).known
        if limit <= from_block or extras is None:
            return False
        common = self._common.get(request.request_id, {})
        new = [window for window in self._bound(request, session_id) if window not in common]
        if not new:
            return False
        common = self._common.setdefault(request.request_id, common)
        equal = self._equal.setdefault(request.request_id, {})
        first = min(equal.get(window, 0) for window in new)
        blocks = min(limit - first, COMPARED_AT_ONCE // size)
        tokens = array("i", request.all_token_ids[first * size : (first + blocks) * size])
        for window in new:
            if equal.get(window, 0) > first:
                continue
            equal[window] = first + window.common_blocks(tokens, size, blocks, first, extras)
            if equal[window] < first + blocks or equal[window] == limit:
                common[window] = equal.pop(window)
        return bool(equal)

    def continued(self, request_id: str) -> str | None:
        """Return the anonymous session of before a restart that the request continues, or None."""
        self._take(request_id)
        return self._continued.get(request_id)

    def best(self, request: "Request", session_id: str | None, from_block: int) -> Match | None:
        """Return the longest match beyond `from_block` among the windows that the request was compared with."""
        size = self._geometry.block_tokens
        limit = (request.num_tokens - 1) // size
        if limit <= from_block or self._extras.of(request).known is None:
            return None
        bound = self._bound(request, session_id)
        common = self._common.get(request.request_id)
        if not common:
            return None
        # The newest thaw goes first if several are equally long.
        compared = [*(window for window in bound if window in common), *common]
        window = max(compared, key=lambda each: each.loadable(min(common[each], limit)))
        to_block = window.loadable(min(common[window], limit))
        automatic = window not in bound
        return Match(window, from_block, to_block, automatic) if to_block > from_block else None

    def finished(self, request_id: str) -> None:
        """Forget a request."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None and waiting.answer is not None:
            waiting.answer.cancel()
        self._common.pop(request_id, None)
        self._equal.pop(request_id, None)
        self._continued.pop(request_id, None)
        self._extras.finished(request_id)

    # --- internal ---

    def _bound(self, request: "Request", session_id: str | None) -> tuple[BoundWindow, ...]:
        return self._thaw_bindings.of(session_id, _salt(request))

    def _take(self, request_id: str) -> None:
        """Take the answer if there is one, and stop waiting."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None or waiting.answer is None or not waiting.answer.done() or waiting.answer.cancelled():
            return
        found = waiting.answer.result()
        if found.common:
            self._common[request_id] = dict(found.common)
        if found.session_id is not None:
            self._continued[request_id] = found.session_id


def is_anonymous(request: "Request") -> bool:
    """Return whether the request has neither a session id nor a salt."""
    if request.cache_salt:
        return False
    if not request.session_id:
        return True
    speaker = parse_speaker(request.session_id)
    return speaker is not None and speaker.session_id is None


def _salt(request: "Request") -> bytes | None:
    return salt_hash(request.cache_salt) if request.cache_salt else None
