"""The canary: two fixed blocks that the engine computes for us, and a print of what each KV cache group has of them.

Equal prints mean equal weights, rotary choice, quantisation, kernels and layout, whether or not a field names them. It
is taken after the start and whenever the weights may have been replaced. The request has a salt that is used once, so
all of it is computed. It belongs to no session, and no chunk is stored.

Equal engines can differ in rounding from one start to the next. The home's earlier engine has written its print down.
If the first print agrees with it within a tolerance, that one is used, so that the keys of chunks stay the same. Within
one engine every other print counts as other weights.
"""

import asyncio
import json
import logging
import secrets
import time
from array import array
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from cwm_connector.control.async_helpers import wait_done
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.context import PERSIST_STEP_S, EngineContext
from cwm_connector.operations.own_requests.prefill import Prefill, prefilled
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.jobs import CanaryJob
from cwm_connector.step.save_plan import Recomputed

logger = logging.getLogger(__name__)

LIMIT_S: Final = 120.0
"""For one print."""
POLL_S: Final = 0.25
RETRY_S: Final = 1.0
TRIES: Final = 4
"""Other requests in the batch can change the rounding. Another print than before counts once it comes twice running."""
BLOCKS: Final = 2
LONGEST: Final = 1024
"""Tokens. A model whose blocks are longer, as those with states are, computes one block."""
_NOTHING: Final = BoundWindow(name="", token_ids=array("i"), chunks=(), usable_blocks=0)


def canary_tokens(vocabulary: int, block_tokens: int, longest: int) -> "array[int]":
    """Return the tokens: at most two blocks and one more, as `longest` allows. Special tokens are left out."""
    blocks = min(BLOCKS, max(1, LONGEST // block_tokens), (longest - 2) // block_tokens)
    first, span = vocabulary // 4, max(1, vocabulary // 2)
    return array("i", [first + at * 7919 % span for at in range(blocks * block_tokens + 1)] if blocks > 0 else [])


def _written(path: Path) -> dict[str, str]:
    """Return the passport that the home's earlier engine has written down. Empty if there is none."""
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in fields.items()} if isinstance(fields, dict) else {}


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)


class Canary:
    """One for each engine."""

    def __init__(self, engine: EngineContext) -> None:
        self._engine = engine
        self._seen: int = -1
        self._last: str | None = None
        self._known_as: dict[str, str] = {}
        """The print of the home's earlier engine, for the first print of this one."""

    async def run(self) -> None:
        """Keep the passport complete until cancelled."""
        passports, gate = self._engine.passports, self._engine.scheduler.copy_gate
        earlier = await asyncio.to_thread(_written, self._engine.settings.passport_path)
        if not passports.has_canary:
            await self._write_down()
        while passports.has_canary:
            if gate.is_paused() or (passports.is_known and self._seen == passports.checks):
                await asyncio.sleep(POLL_S)
                continue
            try:
                await self._check(earlier)
            except CWMError as problem:
                logger.warning("the canary could not be computed: %s", problem)
                await asyncio.sleep(RETRY_S)
            except Exception:
                logger.exception("the canary could not be computed")
                await asyncio.sleep(RETRY_S)

    async def _check(self, earlier: Mapping[str, str]) -> None:
        passports = self._engine.passports
        checks, began = passports.checks, time.perf_counter()
        canary = await self._print()
        for _ in range(TRIES):
            if self._last is None or canary == self._last:
                break
            before, canary = canary, await self._print()
            if before == canary:
                break
        if self._last is None and passports.agrees(canary, earlier):
            self._known_as[canary] = earlier["canary"]
        self._last = canary
        logger.info("the canary's print is %s, after %.0f ms", canary[:16], (time.perf_counter() - began) * 1000)
        passports.found(self._known_as.get(canary, canary), checks, self._weights_replaced)
        self._seen = checks
        await self._write_down()

    async def _write_down(self) -> None:
        """Write the passport into the home, where `cwm doctor` reads it."""
        path, fields = self._engine.settings.passport_path, dict(self._engine.passport.fields)
        try:
            await asyncio.to_thread(_replace, path, json.dumps(fields, indent=1))
        except OSError as problem:
            logger.warning("%s could not be written (%s); cwm doctor can't compare windows", path, problem.strerror)

    def _weights_replaced(self) -> None:
        self._engine.thaw_bindings.clear()
        logger.warning("the weights were replaced in place; windows of the old ones are refused from now on")

    async def _print(self) -> str:
        """Return the print of the blocks."""
        engine = self._engine
        prefill = Prefill(
            request_id=f"cwm-canary-{secrets.token_hex(8)}",
            token_ids=engine.canary_tokens,
            loadable=_NOTHING,
            cache_salt=f"cwm-{secrets.token_urlsafe(24)}",
        )
        async with prefilled(engine, prefill, _wait) as computed:
            groups = computed.ids_by_group()
            if not any(groups):
                raise CWMError(Code.CHUNK_MISSING, "vLLM did not keep its blocks")
            job = CanaryJob(engine.board.next_id(), groups)
            return (await engine.wait_for_workers(engine.board.post(job).finished, PERSIST_STEP_S)).canary


async def _wait(done: "Future[Recomputed]") -> None:
    """Wait for the engine, which may have a long queue."""
    if not await wait_done(done, LIMIT_S):
        raise CWMError(Code.OPERATION_TIMEOUT, "the engine is busy")
