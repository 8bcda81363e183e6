"""Loop after loop over one store: fork a child, end it, keep what it told, and judge what it found at its start.

The parent imports the engine's parts once and has no threads, so that a child costs a fork. The store is never made
anew: damage adds up until somebody sees it.
"""

import gc
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import torch

from cwm_connector.core.errors import Code
from tests.support.powercut import PowerCut
from tests.support.redis_server import Options, RedisServer
from tests.torture.child import Life, live
from tests.torture.events import (
    Asked,
    Broke,
    Damage,
    Done,
    Ended,
    Event,
    Looked,
    Refused,
    Seen,
    Started,
    Step,
    Window,
    parse,
)  # fmt: skip
from tests.torture.faults import Fault
from tests.torture.judge import Kind, Violation, judge
from tests.torture.ledger import Ledger
from tests.torture.plan import TARGETS, WITH_REDIS, Plan, Trigger, draw, phase
from tests.torture.tally import Tally

_THE_OTHER_HAND: Final = (Code.WINDOW_NOT_FOUND, Code.BUSY)
"""Refusals for what the other hand is doing: it has deleted the window, or it verifies."""
_REDIS: Final = "redis"
STRICT: Final = frozenset({_REDIS})
"""A torn end of its file keeps Redis from starting until somebody runs redis-check-aof: not what is tried here."""
_REWRITE_EARLY: Final = ("--auto-aof-rewrite-min-size", "1mb")
LOGS_KEPT: Final = 5
SILENCE_S: Final = 60.0
"""A child that says nothing for so long hangs."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """One store and what is done to it, until `loops` are through, or `deadline` (time.monotonic) or a violation comes.

    `power`: None where power cuts can't be modelled; then every loop is a kill. The process must run with its shim.
    """

    root: Path
    seed: str
    loops: int
    deadline: float
    acts: int
    keep: int
    power: PowerCut | None = None
    redis: str | None = None
    """A redis-server of its own with this `appendfsync` is the colder tier; its files lie below the root as well."""
    fault: Fault | None = None

    @property
    def home(self) -> Path:
        return self.root / "home"

    def targets(self) -> Sequence[str]:
        """What kills are aimed at."""
        if self.fault is not None and self.fault.killed_in is not None:
            return (self.fault.killed_in,)
        return TARGETS if self.redis is None else WITH_REDIS

    def log(self, loop: int) -> Path:
        """All events of a loop."""
        return self.root.with_name(f"events-{loop}.jsonl")


def run(campaign: Campaign) -> Tally:
    """Blocks until the campaign is over. The process must have no threads."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a child's collections would touch, and so copy, every page of ours
    campaign.root.mkdir(parents=True)
    if campaign.power is not None:
        campaign.power.begin()
    ledger, tally, began = Ledger(), Tally(), time.monotonic()
    with _redis(campaign) as redis:
        _loops(campaign, ledger, tally, redis)
    tally.acknowledged = ledger.acknowledged
    tally.seconds = time.monotonic() - began
    return tally


@contextmanager
def _redis(campaign: Campaign) -> Iterator[RedisServer | None]:
    if campaign.redis is None:
        yield None
        return
    folder = campaign.root / _REDIS
    folder.mkdir()
    server = RedisServer(folder, Options(append_fsync=campaign.redis, more=_REWRITE_EARLY))
    try:
        server.start()
        if campaign.power is not None:
            campaign.power.settle()  # Redis never syncs the folder that holds its own: not what is tried here
        yield server
    finally:
        server.close()


def _loops(campaign: Campaign, ledger: Ledger, tally: Tally, redis: RedisServer | None) -> None:
    while tally.loops < campaign.loops and time.monotonic() < campaign.deadline and not tally.violations:
        _loop(campaign, ledger, tally, redis)
        if tally.loops % 100 == 0:
            freezes = ledger.acknowledged["freeze"]
            print(f"seed {campaign.seed}: {tally.loops} loops, {freezes} freezes", flush=True)


def _loop(campaign: Campaign, ledger: Ledger, tally: Tally, redis: RedisServer | None) -> None:
    tally.loops += 1
    seed, fault = f"{campaign.seed}/{tally.loops}", campaign.fault
    plan = draw(seed, campaign.acts, campaign.targets())
    known = {name: [one for one in states if one is not None] for name, states in ledger.states().items()}
    acts = campaign.acts // 2 if plan.orderly else None
    life = Life(
        campaign.home,
        tally.loops,
        seed,
        acts,
        campaign.keep,
        redis.url if redis else None,
        fault.plant if fault else None,
    )
    with campaign.log(tally.loops).open("wb") as log:
        _Watch(ledger, tally, f"seed {campaign.seed} loop {tally.loops}", log).follow(life, known, plan)
    campaign.log(tally.loops - LOGS_KEPT).unlink(missing_ok=True)
    ledger.kill()
    if tally.violations:
        return  # as it was found
    if campaign.power is not None and tally.loops % 2 == 0:
        if redis is not None:
            redis.kill()
        campaign.power.cut(plan.dice if plan.torn else None)
        tally.cuts += 1
        if redis is not None:
            redis.start()
    if fault is not None and fault.between is not None:
        fault.between(campaign.home)


class _Watch:
    """Follows one child from its fork to its end."""

    def __init__(self, ledger: Ledger, tally: Tally, where: str, log: BinaryIO) -> None:
        self._log = log
        self._ledger = ledger
        self._tally = tally
        self._where = where
        self._seen: list[Seen] = []
        self._damage: list[Damage] = []
        self._last: Event | None = None
        self._looked = False
        self._found = False

    def follow(self, life: Life, known: Mapping[str, Sequence[Window]], plan: Plan) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            live(life, known, writer)
        os.close(writer)
        try:
            for event in self._until_killed(reader, child, Trigger(plan, time.monotonic())):
                self._take(event)
        finally:
            os.close(reader)
        _, status = os.waitpid(child, 0)
        self._end(status)

    def _until_killed(self, reader: int, child: int, trigger: Trigger) -> Iterator[Event]:
        """All events to the last; what was written before the kill is still in the pipe after it."""
        rest, killed = b"", False
        while True:
            now = time.monotonic()
            if not killed and trigger.at is not None and now >= trigger.at:
                os.kill(child, signal.SIGKILL)
                killed = True
            wait = SILENCE_S if killed or trigger.at is None else min(trigger.at - now, SILENCE_S)
            if not select.select([reader], [], [], wait)[0]:
                if wait == SILENCE_S:
                    self._violate(Kind.FAILED, f"nothing happened for {SILENCE_S:.0f} s")
                    os.kill(child, signal.SIGKILL)
                    killed = True
                continue
            data = os.read(reader, 1 << 16)
            if not data:
                return
            self._log.write(data)
            *lines, rest = (rest + data).split(b"\n")
            for event in map(parse, lines):
                trigger.see(event, time.monotonic())
                yield event
            if self._found and not killed:
                os.kill(child, signal.SIGKILL)  # the store stays as it was found
                killed = True

    def _take(self, event: Event) -> None:
        if not isinstance(self._last, Ended):  # what goes on in the background may still be told of
            self._last = event
        match event:
            case Seen():
                self._seen.append(event)
            case Damage() if self._looked:
                self._violate(Kind.CORRUPT, event.text)
            case Damage():
                self._damage.append(event)
            case Looked():
                self._looked = True
                verdict = judge(self._ledger, self._seen, self._damage)
                for violation in verdict.violations:
                    self._violate(violation.kind, violation.text)
                self._tally.windows_checked += len(self._seen)
                self._ledger.show(verdict.matching)
            case Asked():
                self._ledger.ask(event)
            case Step():
                self._ledger.step(event.id, event.text)
            case Done():
                self._ledger.acknowledge(event)
            case Refused():
                refused = self._ledger.refuse(event)
                if event.code not in _THE_OTHER_HAND:
                    self._violate(Kind.FAILED, f"{refused.act} was refused: CWM-{event.code} {event.text}")
            case Broke():
                self._violate(Kind.FAILED, event.text)
            case Started() | Ended():
                pass

    def _end(self, status: int) -> None:
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self._tally.kills += 1
            steps = self._ledger.steps()
            now = [(asked.act, steps.get(asked.id)) for asked in self._ledger.under_way()]
            last = self._last if self._looked or self._last is None else Started()
            self._tally.phases[phase(last, now)] += 1
        elif isinstance(self._last, Ended) and status == 0:
            self._tally.orderly += 1
        elif not isinstance(self._last, Broke):
            self._violate(Kind.FAILED, f"the child ended by itself with status {status}")

    def _violate(self, kind: Kind, text: str) -> None:
        self._found = True
        self._tally.violations.append(Violation(kind, f"{self._where}: {text}"))
