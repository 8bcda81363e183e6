"""A durable tier as a contributor would add it: this package and one entry in the registry, and nothing else.

One file for each part of a chunk, in `toy/` under CWM_HOME. It is configured where that folder is there.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, TierName
from cwm_connector.settings import Settings
from cwm_connector.tiers.base import ChunkId, DurableTier


def open_tier(settings: Settings, home_id: str) -> DurableTier | None:
    """Return the tier; None where the folder is not there."""
    folder = settings.home / "toy"
    return ToyTier(folder) if folder.is_dir() else None


def register(monkeypatch: pytest.MonkeyPatch) -> TierName:
    """Write the registry's entry, `TOY = "toy", 4`, for the time of a test."""
    entry = TierName._new_member_(TierName, "toy", 4)  # type: ignore[attr-defined]
    entry._name_ = "TOY"
    monkeypatch.setitem(TierName._member_map_, "TOY", entry)
    monkeypatch.setitem(TierName._value2member_map_, "toy", entry)
    monkeypatch.setattr(TierName, "_member_names_", [*TierName._member_names_, "TOY"])
    monkeypatch.setitem(sys.modules, "cwm_connector.tiers.toy", sys.modules[__name__])
    return TierName("toy")


class ToyTier:
    """See `DurableTier`. Every call blocks."""

    shared = False

    def __init__(self, folder: Path) -> None:
        self.name = TierName("toy")
        self._folder = folder

    def write(self, chunk: ChunkId, sealed: memoryview, claim: Claim = NO_CLAIM) -> "Future[None]":
        def work() -> None:
            staged = self._path(chunk).with_suffix(".new")
            staged.write_bytes(sealed)
            staged.replace(self._path(chunk))

        return _done(work)

    def read(self, chunk: ChunkId, into: memoryview) -> "Future[None]":
        def work() -> None:
            size = self.size_of(chunk)
            if size is None:
                raise CWMError(Code.CHUNK_MISSING, "the toy box does not have it")
            if size != into.nbytes:
                raise CWMError(Code.CORRUPT, "it has another length", fault="length")
            into[:] = self._path(chunk).read_bytes()

        return _done(work)

    def sync(self) -> None:
        os.sync()

    def limit_bytes(self) -> int | None:
        return 1 << 20

    def condition(self) -> str:
        return "tidy"

    def require_lasting(self) -> None:
        pass

    def delete(self, chunk: ChunkId, claim: Claim = NO_CLAIM) -> bool:
        there = self._path(chunk).exists()
        self._path(chunk).unlink(missing_ok=True)
        return there

    def claims_of(self, chunk: ChunkId) -> frozenset[Claim]:
        return frozenset({NO_CLAIM}) if self._path(chunk).exists() else frozenset()

    def size_of(self, chunk: ChunkId) -> int | None:
        return self._path(chunk).stat().st_size if self._path(chunk).exists() else None

    def inventory(self) -> Iterator[tuple[ChunkId, int]]:
        for path in self._folder.glob("*.chunk"):
            key, rank = path.stem.split("-")
            yield ChunkId(ChunkKey(bytes.fromhex(key)), int(rank)), path.stat().st_size

    def sweep_leftovers(self) -> int:
        leftovers = list(self._folder.glob("*.new"))
        for path in leftovers:
            path.unlink()
        return len(leftovers)

    def close(self) -> None:
        pass

    def _path(self, chunk: ChunkId) -> Path:
        return self._folder / f"{chunk.key.hex()}-{chunk.kv_rank}.chunk"


def _done(work: Callable[[], None]) -> "Future[None]":
    future: Future[None] = Future()
    try:
        work()
    except Exception as problem:
        future.set_exception(problem)
    else:
        future.set_result(None)
    return future
