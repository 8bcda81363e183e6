"""Thaw again and again over an engine in miniature, and count what is left of it."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cwm_connector.catalog.session_pages import SessionQuery
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import frozen, text

WINDOWS = 4
USERS = 6


@dataclass(frozen=True, slots=True)
class Left:
    """What there is after so many thaws."""

    thaws: int
    objects: int
    """Objects that Python's collector knows, in the whole process."""
    resident_bytes: int
    catalog_bytes: int
    bindings: int
    sessions: int
    files: int
    """Files below the home."""


async def soak(engine: Miniature, thaws: int, every: int) -> AsyncIterator[Left]:
    """Thaw windows into new sessions. A request uses each tenth thaw by its session, another one by its salt.

    The sessions that speak are few, because the engine's index of those has a bound of its own (sessions/bounds.py).
    Yield what is left after every `every` thaws.
    """
    idle = len(asyncio.all_tasks())
    texts = {f"w{number}": text(number) for number in range(WINDOWS)}
    for name, tokens in texts.items():
        await frozen(engine, name, tokens)
    for number in range(1, thaws + 1):
        name = f"w{number % WINDOWS}"
        session = f"user-{number // 5 % USERS}" if number % 5 == 0 else f"nobody-{number}"
        thawed = await engine.call(Op.THAW, window_name=name, new_session_id=session)
        if number % 10 == 0:
            assert await engine.resume(texts[name], session_id=thawed["session_id"]) == len(texts[name])
        if number % 10 == 5:
            assert await engine.resume(texts[name], salt=thawed["cache_salt"]) == len(texts[name])
        if number % every == 0:
            await _until_idle(idle)
            yield await _left(engine, number)


async def _until_idle(tasks: int) -> None:
    """Wait for what a thaw does after its answer."""
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110 nobody tells
            await asyncio.sleep(0.05)


async def _left(engine: Miniature, thaws: int) -> Left:
    gc.collect()
    bindings, sessions = await engine.catalog.run(
        lambda catalog: (len(catalog.bindings()), catalog.sessions(SessionQuery()).total)
    )
    return Left(
        thaws=thaws,
        objects=len(gc.get_objects()),
        resident_bytes=_resident_bytes(),
        catalog_bytes=engine.settings.catalog_path.stat().st_size,
        bindings=bindings,
        sessions=sessions,
        files=sum(path.is_file() for path in engine.settings.home.rglob("*")),
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
