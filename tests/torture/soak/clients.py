"""The clients of a soak: each does one thing after the other, drawn from its own dice, and notes what was wrong.

A client freezes and deletes windows of its own, and thaws and clones everybody's. Every call has a limit of time.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import httpx

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import (
    Args,
    CloneArgs,
    DeleteArgs,
    FreezeArgs,
    NoArgs,
    Op,
    SessionsArgs,
    ThawArgs,
    VerifyArgs,
)  # fmt: skip
from cwm_mcp.api.client import ControlClient
from tests.support.api import Api, Completion
from tests.torture.judge import Kind, Violation
from tests.torture.soak.conversations import Conversations, Turn
from tests.torture.soak.oracle import LOGPROBS, Oracle
from tests.torture.soak.weather import Weather

LIMIT_S: Final = 150.0
"""A call that takes longer hangs."""
KEEP: Final = 3
"""Windows that a client lets stand."""
IN_BAD_WEATHER: Final = frozenset(
    {Code.CHUNK_MISSING, Code.WRITE_FAILED, Code.READ_FAILED, Code.QUOTA, Code.CORRUPT, Code.BACKEND,
     Code.ENGINE_TIMEOUT, Code.OPERATION_TIMEOUT}
)  # fmt: skip
AFTER_AN_ABORT: Final = frozenset({Code.SESSION_NOT_FOUND, Code.STATE})
"""Of the freeze of a session whose only request was aborted before it filled a block."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a window that was acknowledged holds: the turn, and the answer that was heard to it."""

    turn: Turn
    heard: tuple[int, ...]
    is_whole: bool = True
    """False after an aborted answer: the window then holds a beginning of this."""


@dataclass(slots=True)
class Ledger:
    """What all clients know together, and what they found wrong."""

    windows: dict[str, Frozen] = field(default_factory=dict)
    unsettled: dict[str, Frozen] = field(default_factory=dict)
    """Windows whose freeze or delete failed. They may stand or not."""
    count: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    asleep_at: float = -float("inf")
    """When the engine was last put to sleep or reset, which aborts requests."""

    def violate(self, kind: Kind, text: str) -> None:
        """Note what must not be."""
        self.violations.append(Violation(kind, text))


@dataclass(frozen=True, slots=True)
class Place:
    """What the clients of one run share."""

    api: Api
    url: str
    said: Conversations
    oracle: Oracle
    weather: Weather
    ledger: Ledger
    until: float
    names: "itertools.count[int]" = field(default_factory=itertools.count)
    sleeping: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the client that has put the engine to sleep."""


class Client:
    """One of several. `work` ends when the time is over or something was wrong."""

    def __init__(self, place: Place, control: ControlClient, number: int, dice: Random) -> None:
        self._place = place
        self._ledger = place.ledger
        self._control = control
        self._number = number
        self._dice = dice
        self._sessions: dict[str, tuple[str | None, Frozen]] = {}
        """The salt, and what was said last."""

    async def work(self) -> None:
        acts = list(MIX)
        weights = [MIX[act] for act in acts]
        while time.monotonic() < self._place.until and not self._ledger.violations:
            if len(self._own()) > KEEP:
                await self.delete()
                continue
            act = self._dice.choices(acts, weights)[0]
            await act(self)

    # --- requests ---

    async def ask(self) -> None:
        """Begin a session, or go on with one."""
        session, salt, turn = self._next()
        if (heard := await self._ask(turn, session, salt)) is not None:
            self._sessions[session] = (salt, Frozen(turn, heard.token_ids))

    async def ask_long(self) -> None:
        """Ask for so much that others are preempted."""
        turn = self._dice.choice(self._place.said.long)
        await self._ask(turn, self._fresh("long"), None)

    async def abort(self) -> None:
        """Leave in the middle, at any time from the first step to the last token."""
        session, salt, turn = self._next()
        request = asyncio.create_task(self._ask(turn, session, salt))
        await asyncio.wait({request}, timeout=self._dice.uniform(0, 2.5))
        if request.cancel():
            self._ledger.count["abort"] += 1
        await asyncio.wait({request})
        self._sessions[session] = (salt, Frozen(turn, turn.answer, is_whole=False))

    # --- windows ---

    async def freeze(self) -> None:
        await self._freeze(None)

    async def freeze_and_leave(self) -> None:
        """Cancel a freeze in the middle."""
        await self._freeze(self._dice.uniform(0, 0.6))

    async def thaw_and_ask(self) -> None:
        """Thaw any window, and ask by its salt what goes on from there, once or three times at once.

        It goes on in a session of its own. Otherwise its turns would belong to the session that was frozen, and whoever
        freezes that one next would not know of them.
        """
        if (name := self._any()) is None:
            return
        window = self._ledger.windows[name]
        args = ThawArgs(window_name=name, new_session_id=self._fresh("t"), prewarm=self._dice.random() < 0.5)
        thawed = await self._call(Op.THAW, args, name)
        if thawed is None:
            return
        asked = 3 if self._dice.random() < 0.3 else 1
        turns = [self._dice.choice([window.turn, *window.turn.children]) for _ in range(asked)]
        await asyncio.gather(*(self._ask(turn, None, thawed["cache_salt"]) for turn in turns))

    async def clone(self) -> None:
        if (name := self._any()) is None:
            return
        window, copy = self._ledger.windows[name], self._fresh("w")
        if await self._call(Op.CLONE, CloneArgs(source_window=name, target_window=copy), name) is None:
            self._ledger.unsettled[copy] = window
        else:
            self._ledger.windows[copy] = window

    async def delete(self) -> None:
        if own := self._own():
            name = self._dice.choice(own)
            window = self._ledger.windows.pop(name)
            if await self._call(Op.DELETE, DeleteArgs(window_name=name), name) is None:
                self._ledger.unsettled[name] = window

    async def collect(self) -> None:
        await self._call(Op.COLLECT, NoArgs())
        await self._call(Op.VERIFY, VerifyArgs(repair=True, restart=True, rate_mb_s=0))

    async def look(self) -> None:
        await self._call(Op.SESSIONS, SessionsArgs())
        await self._call(Op.STATS, NoArgs())

    # --- the engine ---

    async def reset(self) -> None:
        """Empty vLLM's cache, which is refused while somebody holds a block."""
        running, external = self._dice.random() < 0.3, self._dice.random() < 0.3
        query = {"reset_running_requests": str(running).lower(), "reset_external": str(external).lower()}
        status, body = await self._post("/reset_prefix_cache", query)
        self._ledger.count["reset" if body.get("success") else "refused reset"] += 1
        if status != httpx.codes.OK and not running:
            self._ledger.violate(Kind.FAILED, f"a reset answered {status}: {body}")

    async def sleep_and_wake(self) -> None:
        """Sleep in one of vLLM's three ways. The CPU build keeps its memory, and does all else."""
        mode = self._dice.choice(("abort", "wait", "keep"))
        async with self._place.sleeping:
            self._ledger.asleep_at = float("inf")
            status, _ = await self._post("/sleep", {"level": "1", "mode": mode})
            self._ledger.count[f"sleep {mode}" if status == httpx.codes.OK else "refused sleep"] += 1
            await asyncio.sleep(self._dice.uniform(0, 0.5))
            status, body = await self._post("/wake_up", {})
            self._ledger.asleep_at = time.monotonic()
        if status != httpx.codes.OK:
            self._ledger.violate(Kind.FAILED, f"it did not wake up: {status} {body}")

    # --- how ---

    def _next(self) -> tuple[str, str | None, Turn]:
        if self._sessions and self._dice.random() < 0.6:
            session = self._dice.choice(list(self._sessions))
            salt, last = self._sessions[session]
            return session, salt, self._dice.choice(last.turn.children or [last.turn])
        session = self._fresh("s")
        salt = f"private-{session}" if self._dice.random() < 0.25 else None
        return session, salt, self._dice.choice(self._place.said.roots)

    async def _ask(self, turn: Turn, session: str | None, salt: str | None) -> Completion | None:
        """The answer, compared; None if there was none, as the engine was put to sleep."""
        began, place = time.monotonic(), self._place
        try:
            async with asyncio.timeout(LIMIT_S):
                heard = await place.api.complete(
                    turn.prompt, turn.max_tokens, session_id=session, cache_salt=salt, logprobs=LOGPROBS
                )
        except TimeoutError:
            self._ledger.violate(Kind.FAILED, f"a request for {turn.name} hung for {LIMIT_S:.0f} s")
            return None
        except (RuntimeError, httpx.TransportError) as problem:
            if self._ledger.asleep_at < began:
                self._ledger.violate(Kind.FAILED, f"a request for {turn.name} failed: {problem}")
            return None
        is_cut = self._ledger.asleep_at >= began
        self._ledger.count["answer"] += 1
        difference = place.oracle.difference(turn, heard, is_cut=is_cut)
        if difference is not None:
            cached = f"{heard.cached_tokens} of {heard.prompt_tokens} from a cache"
            self._ledger.violate(Kind.CORRUPT, f"{difference} (session {session}, salt {salt}, {cached})")
        return heard if len(heard.token_ids) == turn.max_tokens else None

    async def _freeze(self, leave_after: float | None) -> None:
        if not self._sessions:
            await self.ask()
            return
        session = self._dice.choice(list(self._sessions))
        said = self._sessions[session][1]
        name = self._fresh("w")
        # Until it is answered, nobody knows.
        self._ledger.unsettled[name] = said
        call = asyncio.create_task(
            self._call(Op.FREEZE, FreezeArgs(session_id=session, window_name=name), after_abort=not said.is_whole)
        )
        await asyncio.wait({call}, timeout=leave_after)
        if not call.done():
            call.cancel()
            self._ledger.count["left freeze"] += 1
        await asyncio.wait({call})
        if not call.cancelled() and call.result() is not None:
            self._ledger.windows[name] = said
            del self._ledger.unsettled[name]

    async def _call(self, op: Op, args: Args, window: str | None = None, *, after_abort: bool = False) -> Any:
        """The result; None for a refusal, which is a violation unless there is a reason, such as an aborted request."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT_S):
                result = await self._control.call(op, args)
        except TimeoutError:
            self._ledger.violate(Kind.FAILED, f"{op.value} hung for {LIMIT_S:.0f} s")
            return None
        except CWMError as problem:
            self._ledger.refused[f"{op.value} {int(problem.code)}"] += 1
            deleted = problem.code is Code.WINDOW_NOT_FOUND and window not in self._ledger.windows
            weather = problem.code in IN_BAD_WEATHER and self._place.weather.was_bad_since(began)
            slept = self._ledger.asleep_at >= began and (op is Op.FREEZE or problem.code is Code.STATE)
            aborted = after_abort and problem.code in AFTER_AN_ABORT
            if not (deleted or weather or slept or aborted or problem.code is Code.BUSY):
                self._ledger.violate(Kind.FAILED, f"{op.value} of {window} was refused: {problem}")
            return None
        self._ledger.count[op.value] += 1
        return result

    async def _post(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        try:
            async with httpx.AsyncClient(timeout=LIMIT_S, verify=False, trust_env=False) as client:
                answer = await client.post(self._place.url + path, params=query)
        except httpx.TimeoutException:
            self._ledger.violate(Kind.FAILED, f"{path} with {query} hung for {LIMIT_S:.0f} s")
            return 0, {}
        return answer.status_code, answer.json() if answer.content else {}

    def _own(self) -> list[str]:
        return [name for name in self._ledger.windows if name.split("-")[1] == str(self._number)]

    def _any(self) -> str | None:
        return self._dice.choice(list(self._ledger.windows)) if self._ledger.windows else None

    def _fresh(self, kind: str) -> str:
        return f"{kind}-{self._number}-{next(self._place.names)}"


MIX: Final[dict[Callable[[Client], Awaitable[None]], int]] = {
    Client.ask: 24,
    Client.ask_long: 8,
    Client.abort: 9,
    Client.freeze: 16,
    Client.freeze_and_leave: 4,
    Client.thaw_and_ask: 20,
    Client.clone: 4,
    Client.delete: 5,
    Client.collect: 2,
    Client.look: 2,
    Client.reset: 4,
    Client.sleep_and_wake: 2,
}
