"""Windows, chunk files and Redis values of a `Miniature`, to make, to look at and to damage."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cwm_connector.core.types import TierName
from cwm_connector.protocol.calls import Op
from cwm_connector.tiers.base import ChunkId
from tests.support.miniature import Miniature, chunk_files

CHUNK_TOKENS = 32
CHUNK_BYTES = 4096 + 2 * 2 * 512 * 8
"""Sealed: two blocks of two layers' pages."""


def text(seed: int, chunks: int = 3) -> list[int]:
    """Return the token ids of so many whole chunks, different for each seed."""
    return random.Random(seed).choices(range(1, 30_000), k=chunks * CHUNK_TOKENS)


async def frozen(engine: Miniature, name: str, tokens: list[int]) -> dict[str, Any]:
    """Serve the tokens in a session with the window's name and freeze it."""
    await engine.serve(tokens, name)
    return await engine.call(Op.FREEZE, session_id=name, window_name=name)


async def tiers_of(engine: Miniature, name: str) -> dict[str, int]:
    status = await engine.call(Op.STATUS, window_name=name)
    tiers: dict[str, int] = status["kv_cache"]["tiers"]
    return tiers


async def hashes_of(engine: Miniature, name: str) -> list[str]:
    return [block["hash"] for block in await blocks_of(engine, name)]


async def demote(engine: Miniature, name: str) -> int:
    """Move the window's chunks from disk to Redis."""
    rows = await engine.catalog.run(lambda catalog: catalog.chunks_of(name))
    return await engine.operations.tiering.demote([row.key for row in rows])


def forget_memory(engine: Miniature) -> None:
    """Empty the CPU tier, as other work would."""
    for key in engine.engine.locations.in_memory():
        engine.cpu.drop(ChunkId(key, 0))
        engine.engine.locations.update([], [ChunkId(key, 0)])


def flip(path: Path, at: int = 6000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def files_of(home: Path, hashes: Iterable[str]) -> list[Path]:
    return [path for path in chunk_files(home) for each in hashes if each in path.name]


def redis_bytes(engine: Miniature) -> int:
    return sum(size for _, size in engine.engine.durable_tiers[TierName.REDIS].inventory())


def on_disk(engine: Miniature) -> int:
    """Return the bytes of all chunk files."""
    return sum(path.stat().st_size for path in chunk_files(engine.settings.home))


async def blocks_of(engine: Miniature, window: str) -> list[dict[str, Any]]:
    """Return the chunks of a window as status lists them."""
    status = await engine.call(Op.STATUS, window_name=window, include_blocks=True)
    return list(status["blocks"])
