"""One soak: an engine, clients and weather for so many seconds, then the look at the end.

The short form has one engine. Its own answers are the reference, asked before anything was frozen, one after the other,
each under a salt that nobody else has: vLLM finds none of their blocks in its cache, and nothing is bound that could be
loaded, so no byte of ours is in them. A fault of ours that shows in them all the same would have to change an engine
that was never asked to keep anything. The long form asks a vLLM without us.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx

from cwm_connector.protocol.calls import DeleteArgs, ListArgs, Op
from cwm_mcp.api.client import ControlClient
from cwm_mcp.serve import Build, compose, installed_build
from tests.support.engine import Engine, EngineOptions, Launch, launch_new, model_folder
from tests.support.first_layers import first_layers
from tests.support.redis_server import redis_server
from tests.torture.judge import Violation
from tests.torture.soak import inside, weather
from tests.torture.soak.clients import Client, Ledger, Place
from tests.torture.soak.conversations import Conversations, drawn
from tests.torture.soak.ending import Ending, looks, memory_mib
from tests.torture.soak.oracle import Oracle
from tests.torture.soak.weather import Places, Weather

KV_TOKENS: Final = 3072
"""The clients' requests are longer together, so that vLLM preempts."""
STEP_TOKENS: Final = 384
"""Of one step, so that a prompt is computed in several."""
CPU_GB: Final = 0.04
"""A few windows, so that chunks are evicted between a match and its load."""
CLIENTS: Final = 4
_PLANTING_S: Final = 30.0
CONNECTOR: Final = {"kv_connector_module_path": inside.__name__}


@dataclass(frozen=True, slots=True)
class Soak:
    """What is done."""

    seed: str
    seconds: float
    roots: int = 3
    depth: int = 2
    sample: int = 4
    """Turns that are asked twice, for the noise."""
    thaws: int | None = None
    """Windows that are thawed at the end; None: all."""
    shared_catalog: bool = True
    chunk_tokens: int = 256


@dataclass(slots=True)
class Outcome:
    """What happened and what was wrong."""

    soak: Soak
    bug: str | None = None
    """One of `inside.BUGS` that was planted."""
    seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    faults: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Faults that can't be made here."""
    engine: dict[str, float] = field(default_factory=dict)
    """Counters of vLLM and of CWM."""
    noise: float = 0.0
    memory: list[dict[int, int]] = field(default_factory=list)

    @property
    def violations(self) -> list[Violation]:
        return self.ledger.violations

    def summary(self) -> str:
        """Return all of it in a few lines."""
        found = "; ".join(map(str, self.violations[:8])) or "nothing wrong, lost, leaked or hung"
        acts = ", ".join(f"{act} {number}" for act, number in self.ledger.count.most_common())
        refused = ", ".join(f"{what} x {number}" for what, number in self.ledger.refused.most_common()) or "nothing"
        faults = ", ".join(f"{name} {number}" for name, number in self.faults.items()) or "none"
        counted = ", ".join(f"{name} {number:.0f}" for name, number in self.engine.items())
        missing = f"; not possible here: {', '.join(self.missing)}" if self.missing else ""
        planted = f", planted {self.bug}" if self.bug else ""
        return (
            f"soak: seed {self.soak.seed}{planted}, {self.seconds:.0f} s: {found}\n  {acts}\n  refused: {refused}\n"
            f"  faults: {faults}{missing}\n  {counted}\n  noise of a logprob {self.noise:.2g}; MiB {self.memory}"
        )

    def report(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "seed": self.soak.seed,
            "bug": self.bug,
            "violations": [str(each) for each in self.violations],
            "acts": dict(self.ledger.count),
            "refused": dict(self.ledger.refused),
            "faults": self.faults,
            "missing": self.missing,
            "engine": self.engine,
            "noise": self.noise,
            "seconds": round(self.seconds, 1),
        }


class PlainEngine(Engine):
    """A vLLM without us, with the same options."""

    def command(self) -> list[str]:
        """Return `cwm serve`'s command without the connector and the middleware."""
        options = super().command()[5:]
        command = list(compose(installed_build(), str(self.options.model), options, {}).argv)
        at = command.index("--kv-transfer-config")
        del command[at : at + 2]
        at = command.index("--middleware")
        del command[at : at + 2]
        return command


@dataclass(frozen=True, slots=True)
class Rig:
    """A running engine, what surrounds it, and a folder for what it says of itself."""

    engine: Engine
    places: Places
    folder: Path

    def plant(self, bug: str | None) -> None:
        """Plant the bug, and take out the one before. Return once every process has done so."""
        wanted, deadline = bug or "", time.monotonic() + _PLANTING_S
        (self.folder / inside.BUG_FILE).write_text(wanted)
        while {look["bug"] for look in looks(self.folder)} != {wanted}:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the engine's processes did not plant {wanted!r}: {looks(self.folder)}")
            time.sleep(0.1)


@contextmanager
def rig(soak: Soak, launch: Launch = launch_new) -> Iterator[Rig]:
    """Start an engine with all that a soak does to it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="cwm-soak-")))
        places = _places(stack, folder)
        yield Rig(stack.enter_context(Engine(_options(soak, places, folder), launch)), places, folder)


def run(soak: Soak, on: Rig, said: tuple[Conversations, Oracle] | None = None, bug: str | None = None) -> Outcome:
    """Block until it is over. `said`: what `reference` has returned; None: the engine itself is the reference."""
    outcome = Outcome(soak, bug=bug, missing=on.places.missing)
    on.plant(bug)
    asyncio.run(_soaked(on, soak, outcome, said))
    if outcome.violations and bug is None:
        print(on.engine.log_tail(60), flush=True)
    return outcome


def reference(soak: Soak) -> tuple[Conversations, Oracle]:
    """Ask a vLLM without us everything that will be said."""
    with TemporaryDirectory(prefix="cwm-soak-") as folder:
        options = _options(soak, Places(Path(folder)), Path(folder))
        with PlainEngine(options) as plain:
            return asyncio.run(_reference(plain, soak))


def _places(stack: ExitStack, folder: Path) -> Places:
    disk = folder / "disk"
    disk.mkdir()
    mount = stack.enter_context(weather.small_disk(disk))
    chunks = disk / "chunks"
    slow = weather.slow_disk(folder, chunks)
    missing = []
    if mount is None:
        missing.append("a disk that is full or read-only (this user may not mount)")
    if slow is None:
        missing.append("a slow disk (no C compiler)")
    redis = stack.enter_context(redis_server(append_fsync="always"))
    return Places(chunks, redis, mount, slow, missing)


def _options(soak: Soak, places: Places, folder: Path) -> EngineOptions:
    settings = places.settings() | {
        "CWM_CHUNK_TOKENS": str(soak.chunk_tokens),
        "CWM_DISK_PATH": str(places.chunks),
        "CWM_CATALOG": "redis" if soak.shared_catalog else "sqlite",
        "VLLM_SERVER_DEV_MODE": "1",
        inside.LOOKS: str(folder),
    }
    arguments = ("--max-num-batched-tokens", str(STEP_TOKENS), "--max-num-seqs", "8")
    sleep = ("--enable-sleep-mode",) if installed_build() is Build.CUDA else ()
    return EngineOptions(
        model=first_layers(model_folder(), folder / "model"),
        max_model_len=2048,
        kv_tokens=KV_TOKENS,
        cpu_cache_gb=CPU_GB,
        settings=settings,
        arguments=(*arguments, *sleep, "--kv-transfer-config", json.dumps(CONNECTOR)),
    )


async def _reference(engine: Engine, soak: Soak) -> tuple[Conversations, Oracle]:
    said = await drawn(engine.api, Random(f"{soak.seed}/said"), soak.roots, soak.depth)
    oracle = Oracle()
    await oracle.ask_all(engine.api, said, soak.sample)
    return said, oracle


async def _soaked(on: Rig, soak: Soak, outcome: Outcome, asked: tuple[Conversations, Oracle] | None) -> None:
    control = ControlClient(on.engine.home / "engine.sock", "soak")
    await _cleared(on, control)
    said, oracle = asked or await _reference(on.engine, soak)
    outcome.noise = oracle.noise
    began = time.monotonic()
    winds = Weather(on.places, Random(f"{soak.seed}/weather"))
    place = Place(on.engine.api, on.engine.url, said, oracle, winds, outcome.ledger, began + soak.seconds)
    clients = [Client(place, control, number, Random(f"{soak.seed}/{number}")) for number in range(CLIENTS)]
    half = asyncio.create_task(_at_half(on.engine, soak.seconds))
    blowing = asyncio.create_task(winds.blow(place.until))
    try:
        await asyncio.gather(*(client.work() for client in clients))
        if not outcome.violations:
            await blowing
            memory = await half
            ending = Ending(on.engine, control, on.places, outcome.ledger, oracle, on.folder)
            await ending.check(winds.damaged, soak.thaws, memory)
            outcome.memory = [memory, memory_mib(on.engine)]
        outcome.engine = await _counters(on.engine)
    finally:
        half.cancel()
        winds.is_over = True
        await asyncio.wait({half, blowing})
        outcome.faults = dict(winds.count)
        outcome.seconds = time.monotonic() - began
        await control.aclose()


async def _cleared(on: Rig, control: ControlClient) -> None:
    """Delete what an earlier run has left, and empty vLLM's cache."""
    for window in (await control.call(Op.LIST, ListArgs(limit=100)))["windows"]:
        await control.call(Op.DELETE, DeleteArgs(window_name=window["name"]))
    async with httpx.AsyncClient(timeout=60, verify=False, trust_env=False) as client:
        for _ in range(60):
            if (await client.post(f"{on.engine.url}/reset_prefix_cache?reset_external=true")).json()["success"]:
                return
            await asyncio.sleep(0.5)
    raise RuntimeError("vLLM's blocks are held since before the soak")


async def _at_half(engine: Engine, seconds: float) -> dict[int, int]:
    await asyncio.sleep(seconds / 2)
    return memory_mib(engine)


async def _counters(engine: Engine) -> dict[str, float]:
    metrics = await engine.api.metrics()
    return {
        "preemptions": metrics["vllm:num_preemptions_total"],
        "prompt tokens": metrics["vllm:prompt_tokens_total"],
        "hits": metrics["vllm:prefix_cache_hits_total"],
        "restored tokens": metrics["vllm:external_prefix_cache_hits_total"],
    }
