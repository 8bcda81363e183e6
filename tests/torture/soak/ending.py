"""The look at the end: nothing is held, under way or leaked, and every acknowledged window is there and whole."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.calls import (
    DeleteArgs,
    HealthArgs,
    ListArgs,
    NoArgs,
    Op,
    StatusArgs,
    ThawArgs,
    TokensArgs,
)  # fmt: skip
from cwm_mcp.api.client import ControlClient
from tests.support.engine import Engine
from tests.support.redis_server import RedisServer
from tests.torture.judge import Kind
from tests.torture.soak.clients import Frozen, Ledger
from tests.torture.soak.conversations import Turn
from tests.torture.soak.inside import EVERY_S
from tests.torture.soak.oracle import LOGPROBS, Oracle
from tests.torture.soak.weather import Places

PATIENCE_S: Final = 60.0
"""Until everything that was under way has ended, after the last fault."""
GROWTH_MIB: Final = 256
"""Memory that a process may take between two looks. Allocators keep what they had once."""

MOST_THREADS: Final = 64
"""The readers and writers of two tiers, which begin when they are needed first, and the single threads. They are fewer
altogether. A leak has no bound."""


def looks(folder: Path) -> list[dict[str, Any]]:
    """Return the newest look of each of the engine's processes."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def memory_mib(engine: Engine) -> dict[int, int]:
    """Return the resident memory of each of the engine's processes."""
    found = {}
    for pid in engine.processes():
        status = Path(f"/proc/{pid}/status").read_text()
        found[pid] = next((int(line.split()[1]) // 1024 for line in status.splitlines() if "VmRSS" in line), 0)
    return found


class Ending:
    """Of one run."""

    def __init__(
        self, engine: Engine, control: ControlClient, places: Places, ledger: Ledger, oracle: Oracle, folder: Path
    ) -> None:
        self._engine = engine
        self._control = control
        self._places = places
        self._ledger = ledger
        self._oracle = oracle
        self._folder = folder

    async def check(self, damaged: set[str], at_most: int | None, before: Mapping[int, int]) -> None:
        """Look at everything. At most so many windows are thawed, all without a number."""
        await self._recovered()
        await self._nothing_held()
        for name in await self._listed():
            await self._same_content(name)
        some = list(self._ledger.windows)[-at_most:] if at_most else list(self._ledger.windows)
        for name in some:
            await self._thaws_exactly(name, damaged)
        await self._nothing_held()
        self._flat(before)
        await self._empty_afterwards()

    async def _wait(self, what: str, is_so: Callable[[], Any]) -> bool:
        """Wait until it is so. It is a leak if that does not happen."""
        deadline, said = time.monotonic() + PATIENCE_S, None
        while time.monotonic() < deadline:
            try:
                if (said := await is_so()) is None:
                    return True
            except (CWMError, httpx.HTTPError) as problem:
                said = str(problem)
            await asyncio.sleep(EVERY_S)
        self._ledger.violate(Kind.LEAKED, f"{what} after {PATIENCE_S:.0f} s: {said}")
        return False

    async def _recovered(self) -> None:
        async def fault() -> str | None:
            health = await self._control.call(Op.HEALTH, HealthArgs())
            return None if health["status"] == "healthy" else json.dumps(health["components"])

        await self._wait("the engine has not recovered", fault)

    async def _nothing_held(self) -> None:
        """No request, no block, no job, no pin. vLLM empties its cache only while nobody holds a block of it."""

        async def held() -> str | None:
            metrics = await self._engine.api.metrics()
            requests = metrics["vllm:num_requests_running"] + metrics["vllm:num_requests_waiting"]
            if requests:
                return f"{requests:.0f} requests"
            async with httpx.AsyncClient(timeout=60, verify=False, trust_env=False) as client:
                answer = await client.post(f"{self._engine.url}/reset_prefix_cache")
            if not answer.json()["success"]:
                return "blocks of vLLM's cache"
            await asyncio.sleep(2 * EVERY_S)
            found = {name: number for look in looks(self._folder) for name, number in look["held"].items() if number}
            return json.dumps(found) if found else None

        await self._wait("something is still held", held)

    async def _listed(self) -> list[str]:
        """Hold the list against the ledger. Return what is listed."""
        names: list[str] = []
        while True:
            page = await self._control.call(Op.LIST, ListArgs(limit=100, offset=len(names)))
            names += [window["name"] for window in page["windows"]]
            if not page["has_more"]:
                break
        for name in self._ledger.windows.keys() - set(names):
            self._ledger.violate(Kind.LOST, f"{name} was acknowledged and is not listed")
        for name in set(names) - self._ledger.windows.keys() - self._ledger.unsettled.keys():
            self._ledger.violate(Kind.PHANTOM, f"{name} is listed and was deleted, or never asked for")
        return names

    async def _same_content(self, name: str) -> None:
        """The window's token ids are those that were said, from the first on.

        Who left a freeze may have gone on before it began, so its window holds any turn of the conversation.
        """
        frozen = self._frozen(name)
        if frozen is None:
            return
        ids = memoryview((await self._control.call(Op.TOKENS, TokensArgs(window_name=name)))["token_ids"]).cast("i")
        said = [*frozen.turn.prompt, *(frozen.heard if frozen.is_whole else ())]
        least = len(said) - 1 if frozen.is_whole else 0
        most = len(said) if frozen.is_whole else len(ids)
        same = least <= len(ids) <= most and ids[: len(said)].tolist() == said[: len(ids)]
        if name in self._ledger.unsettled:
            turns = frozen.turn.conversation()
            same = any(ids.tolist() == [*turn.prompt, *turn.answer][: len(ids)] for turn in turns)
        if not same:
            self._ledger.violate(Kind.CORRUPT, f"{name} has {len(ids)} token ids that are not those of the session")

    def _frozen(self, name: str) -> Frozen | None:
        return self._ledger.windows.get(name) or self._ledger.unsettled.get(name)

    async def _thaws_exactly(self, name: str, damaged: set[str]) -> None:
        """All full blocks come back, unless one of its chunks was damaged, and the answer is right in any case."""
        frozen = self._ledger.windows[name]
        status = await self._control.call(Op.STATUS, StatusArgs(window_name=name, include_blocks=True))
        thawed = await self._control.call(Op.THAW, ThawArgs(window_name=name))
        turn = next(iter(frozen.turn.children), frozen.turn)
        heard = await self._engine.api.measure(
            turn.prompt, turn.max_tokens, cache_salt=thawed["cache_salt"], logprobs=LOGPROBS
        )
        self._ledger.count["thaw compared"] += 1
        if (difference := self._oracle.difference(turn, heard.completion)) is not None:
            self._ledger.violate(Kind.CORRUPT, f"{name} at the end: {difference}")
        expected = await self._restorable(frozen, turn, status["token_count"])
        is_damaged = any(block["hash"] in file for block in status["blocks"] for file in damaged)
        if heard.restored < expected and not is_damaged:
            text = f"{name} restores {heard.restored} of {expected} tokens: {thawed['warning']}"
            self._ledger.violate(Kind.LOST, text)

    async def _restorable(self, frozen: Frozen, turn: Turn, tokens: int) -> int:
        """How many tokens of the turn's prompt are in full blocks of the window. One is left to compute."""
        prompt, said = turn.prompt, [*frozen.turn.prompt, *frozen.heard][:tokens]
        common = next(
            (at for at, (one, other) in enumerate(zip(prompt, said, strict=False)) if one != other),
            min(len(prompt), len(said)),
        )
        block_tokens = await self._engine.api.block_tokens()
        return min(common, len(prompt) - 1) // block_tokens * block_tokens

    def _flat(self, before: Mapping[int, int]) -> None:
        now = memory_mib(self._engine)
        for pid, mib in before.items():
            if now.get(pid, 0) > mib + GROWTH_MIB:
                self._ledger.violate(Kind.LEAKED, f"process {pid} grew from {mib} to {now[pid]} MiB")
        if (ours := sum(look["threads"] for look in looks(self._folder))) > MOST_THREADS:
            self._ledger.violate(Kind.LEAKED, f"we have {ours} threads, and {MOST_THREADS} at most are expected")

    async def _empty_afterwards(self) -> None:
        """Once every window is deleted, no tier has a chunk."""
        for name in await self._listed():
            await self._control.call(Op.DELETE, DeleteArgs(window_name=name))
        await self._control.call(Op.COLLECT, NoArgs())

        async def left() -> str | None:
            files = [path.name for path in self._places.chunks.rglob("*.data")]
            keys = [] if self._places.redis is None else chunk_keys(self._places.redis)
            stats = await self._control.call(Op.STATS, NoArgs())
            tiers = {name: tier["blocks"] for name, tier in stats["kv_store"]["tiers"].items() if tier["blocks"]}
            return None if not (files or keys or tiers) else f"{len(files)} files, {len(keys)} keys, {tiers}"

        await self._wait("chunks are left though no window is", left)


def chunk_keys(redis: RedisServer) -> list[bytes]:
    """Return the keys under which Redis has bytes of chunks."""
    with redis.client() as client:
        return list(client.keys("*chunk"))
