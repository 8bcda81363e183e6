"""The same with a real vLLM server: talk, freeze, kill -9 in the middle of the next operation, start, thaw, compare.

A window is whole if vLLM's own counter says that all its blocks were restored, and the greedy answer after it is the
one that the engine gave before the kill.
"""

import asyncio
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.support.engine import Engine, EngineOptions
from tests.support.mcp_client import ToolError, Tools, mcp_client
from tests.support.powercut import PowerCut
from tests.support.talk import WORDS, talked
from tests.torture.judge import Kind, Violation

TOKENS: Final = 632
KEEP: Final = 3
"""Windows that stand at a time."""
_LONGEST_S: Final = 0.15
"""A freeze of so many tokens takes less."""
_AFTER_DEATH_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Told:
    """A frozen session: what stood in it, and what the engine went on with."""

    prompt: list[int]
    full_blocks: int
    answer: tuple[int, ...]


@dataclass(slots=True)
class RealTally:
    loops: int = 0
    freezes: int = 0
    checked: int = 0
    cuts: int = 0
    under_way: dict[str, int] = field(default_factory=lambda: {"freeze": 0, "delete": 0})
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> str:
        found = "; ".join(map(str, self.violations)) or "nothing lost, corrupt or made up"
        under_way = ", ".join(f"{number} in a {act}" for act, number in self.under_way.items())
        return (
            f"real engine: {self.loops} loops of kill -9 ({under_way}; {self.cuts} with a power cut), "
            f"{self.freezes} acknowledged freezes, {self.checked} thaws compared, {self.seconds:.0f} s: {found}"
        )


class RealLoops:
    """Over one store. `power`: this process runs with its shim, and every other kill is a power cut."""

    def __init__(self, engine: Engine, seed: str, power: PowerCut | None) -> None:
        self._engine = engine
        self._dice = Random(seed)
        self._power = power
        self._standing: dict[str, Told] = {}
        self._unsettled: dict[str, Told] = {}
        """What the last kill may have undone or not."""
        self.tally = RealTally()

    def run(self, loops: int, deadline: float) -> None:
        """Ends earlier with a violation, or when the time is over (`time.monotonic`)."""
        began = time.monotonic()
        while self.tally.loops < loops and time.monotonic() < deadline and not self.tally.violations:
            self.tally.loops += 1
            self._engine.start()
            asyncio.run(self._life())
            if self._power is not None and self.tally.loops % 2 == 0 and not self.tally.violations:
                self._power.cut(self._dice if self._dice.random() < 0.5 else None)
                self.tally.cuts += 1
            self.tally.seconds = time.monotonic() - began
            print(f"real engine: loop {self.tally.loops}, {self.tally.seconds:.0f} s", flush=True)

    async def _life(self) -> None:
        async with mcp_client(self._engine) as cwm:
            await self._look(cwm)
            if not self.tally.violations:
                await self._work(cwm)
            self._engine.kill_hard()

    # --- what a start shows ---

    async def _look(self, cwm: Tools) -> None:
        listed = {item["name"] for item in (await cwm.call("window_list", limit=100))["windows"]}
        for name in listed - self._standing.keys() - self._unsettled.keys():
            self._violate(Kind.PHANTOM, f"{name} is listed")
        for name in self._standing.keys() - listed:
            self._violate(Kind.LOST, f"{name} is not listed")
        for name, told in self._unsettled.items():
            if name in listed:
                self._standing[name] = told
        self._unsettled.clear()
        for name in sorted(self._standing.keys() & listed):
            await self._compare(cwm, name, self._standing[name])

    async def _compare(self, cwm: Tools, name: str, told: Told) -> None:
        thawed = await cwm.call("window_thaw", window_name=name, new_session_id=f"{name}-{self.tally.loops}")
        heard = await self._engine.api.measure(told.prompt, WORDS, cache_salt=thawed["cache_salt"])
        self.tally.checked += 1
        if thawed["partial"] or heard.restored < told.full_blocks:
            self._violate(Kind.LOST, f"{name} restores {heard.restored} of {told.full_blocks}: {thawed['warning']}")
        elif heard.completion.token_ids != told.answer:
            self._violate(Kind.CORRUPT, f"{name} goes on with other tokens")

    # --- what is done until the kill ---

    async def _work(self, cwm: Tools) -> None:
        kept = await self._tell(f"kept-{self.tally.loops}")
        await cwm.call("window_freeze", session_id=f"kept-{self.tally.loops}", window_name=f"kept-{self.tally.loops}")
        self.tally.freezes += 1
        self._standing[f"kept-{self.tally.loops}"] = kept
        while len(self._standing) > KEEP:
            name = self._dice.choice(sorted(self._standing))
            await cwm.call("window_delete", window_name=name)
            del self._standing[name]
        if self._dice.random() < 0.35:
            name = self._dice.choice(sorted(self._standing))
            told = self._standing.pop(name)
            await self._kill_in("delete", cwm, name, told, window_name=name)
        else:
            name = f"cut-{self.tally.loops}"
            told = await self._tell(name)
            await self._kill_in("freeze", cwm, name, told, session_id=name, window_name=name)

    async def _tell(self, session_id: str) -> Told:
        """A session of its own, and what the engine goes on with, by its own prefix cache."""
        talk = await talked(self._engine.api, session_id, self._dice.randrange(1 << 30), TOKENS)
        aside = talk.branch(None)
        answer = await aside.say(talk.cue())
        full_blocks = talk.full_blocks(await self._engine.api.block_tokens())
        return Told(aside.ids[:-WORDS], full_blocks, answer.completion.token_ids)

    async def _kill_in(self, act: str, cwm: Tools, name: str, told: Told, **arguments: Any) -> None:
        """Calls, and kills at a random instant; what was acknowledged by then is held to its word."""
        self.tally.under_way[act] += 1
        call = asyncio.create_task(cwm.call(f"window_{act}", **arguments))
        await asyncio.wait({call}, timeout=self._dice.uniform(0, _LONGEST_S))
        self._engine.kill_hard()
        await asyncio.wait({call}, timeout=_AFTER_DEATH_S)
        if not call.done() or isinstance(call.exception(), ToolError):
            call.cancel()
            self._unsettled[name] = told
        elif (problem := call.exception()) is not None:
            raise problem
        elif act == "freeze":
            self.tally.freezes += 1
            self._standing[name] = told

    def _violate(self, kind: Kind, text: str) -> None:
        self.tally.violations.append(Violation(kind, f"real engine, loop {self.tally.loops}: {text}"))


def torture(power: PowerCut | None, seed: str, loops: int, deadline: float) -> RealTally:
    """A fresh store below the power's root, if there is one."""
    options = EngineOptions(max_model_len=2048, kv_tokens=8192)
    if power is not None:
        power.root.mkdir(parents=True)
        power.begin()
        options = EngineOptions(
            max_model_len=2048, kv_tokens=8192, home=power.root / "home", settings=power.environment()
        )
    engine = Engine(options)
    try:
        loop = RealLoops(engine, seed, power)
        loop.run(loops, deadline)
        return loop.tally
    finally:
        engine.close()
