"""The process under torture: starts an engine over the store, tells all it finds, then works until it is killed."""

import asyncio
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.support.miniature import Miniature
from tests.torture.events import Broke, Ended, Looked, Seen, Started, Teller, Window
from tests.torture.look import look
from tests.torture.mix import MIX, WITH_REDIS, Hand, Table

HANDS: Final = 2
DISK_GB: Final = 0.0015
"""With Redis behind the disk: too little for all windows, so that freezes have to make room."""


@dataclass(frozen=True, slots=True)
class Life:
    """One child's."""

    home: Path
    loop: int
    seed: str
    acts: int | None
    """What the hands do before the store is closed in order; None: they go on until they are killed."""
    keep: int
    """Windows that the hands together let stand."""
    redis_url: str | None = None
    fault: Callable[[], None] | None = None
    """Plants a bug in this process."""


def live(life: Life, known: Mapping[str, Sequence[Window]], descriptor: int) -> None:
    """Runs in a forked process and ends it. `known`: for each name the windows that may stand under it."""
    tell = Teller(descriptor)
    try:
        if life.fault is not None:
            life.fault()
        asyncio.run(_live(life, known, tell))
    except BaseException:
        tell(Broke(traceback.format_exc()[-2000:]))
        os._exit(1)
    os._exit(0)


async def _live(life: Life, known: Mapping[str, Sequence[Window]], tell: Teller) -> None:
    limits = {} if life.redis_url is None else {"redis_url": life.redis_url, "disk_cache_gb": DISK_GB}
    engine = await Miniature.started(life.home, **limits)
    tell(Started())
    windows: dict[str, Window] = {}
    async for found in look(engine):
        tell(found)
        if isinstance(found, Seen):
            windows |= {each.name: each for each in known.get(found.name, ()) if _is(each, found)}
    tell(Looked())
    mix = MIX if life.redis_url is None else WITH_REDIS
    table = Table(engine, tell, life.loop, windows)
    hands = [Hand(table, number, Random(f"{life.seed}/{number}"), life.keep // HANDS, mix) for number in range(HANDS)]
    await asyncio.gather(*(hand.work(None if life.acts is None else life.acts // HANDS) for hand in hands))
    tell(Ended())
    await asyncio.to_thread(engine.close)


def _is(window: Window, seen: Seen) -> bool:
    """Of the states that a kill left possible, the one that is there; what else they have is the same."""
    return (window.description, window.tags) == (seen.description, seen.tags)
