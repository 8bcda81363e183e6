"""The connector that a soak's engine loads: CWM's own, which also says what it holds, and can have a bug planted.

vLLM finds it by `kv_connector_module_path`, so that the product needs no hook for either. Each process writes what it
holds into a file in the folder SOAK_LOOKS, twice a second, and plants the bug that the file `bug` there names, until
the file is empty. So several bugs can be tried in one engine, whose start takes a minute.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cwm_connector.connector import CWMConnector as _Connector
from cwm_connector.step.jobs import ChunkRun
from cwm_connector.step.pinned_blocks import PinnedSave
from cwm_connector.step.request_loads import RequestLoads
from cwm_connector.step.window_matches import Match
from cwm_connector.tiers import chunk
from cwm_connector.worker.loads import Loader

LOOKS: Final = "SOAK_LOOKS"
BUG_FILE: Final = "bug"
EVERY_S: Final = 0.5


class CWMConnector(_Connector):
    """Under the name by which vLLM asks for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if folder := os.environ.get(LOOKS):
            threading.Thread(target=self._tell, args=(Path(folder),), name="soak-look", daemon=True).start()

    def _tell(self, folder: Path) -> None:
        role = "worker" if self._service is None else "scheduler"
        path = folder / f"{role}-{os.getpid()}.json"
        planted = Planted()
        while True:
            time.sleep(EVERY_S)
            planted.change_to(folder / BUG_FILE)
            try:
                held = self._held_by_worker() if self._service is None else self._held_by_scheduler()
            except RuntimeError:  # a table changed while it was counted
                continue
            threads = sum(thread.name.startswith("cwm") for thread in threading.enumerate())
            content = {"held": held, "threads": threads, "bug": planted.name}
            path.with_suffix(".new").write_text(json.dumps(content))
            path.with_suffix(".new").replace(path)

    def _held_by_scheduler(self) -> dict[str, int]:
        assert self._service is not None
        side = self._service.scheduler
        loads = side._loads
        return {
            "jobs under way": len(side._board._open),
            "saves with pinned blocks": len(side._pinned._saves),
            "recomputes": len(side._recomputes),
            "requests without a session": len(side._unassigned),
            "matches": len(loads._matches),
            "choices": len(loads._choices),
            "requests that load no more": len(loads._no_more),
            "sources of hits": len(loads._sources),
            "loads under way": len(loads._under_way._loads),
            "requests that wait for a load": len(loads._under_way._waiting),
            "requests that wait for none": len(loads._under_way._alone),
        }

    def _held_by_worker(self) -> dict[str, int]:
        if self._worker is None:
            return {}
        cpu = self._worker._cpu
        return {
            "pins of chunks in memory": sum(entry.pins for entry in list(cpu._entries.values())),
            "reserved buffers": len(cpu._reserved),
            "jobs that are not reported": len(self._worker._outbox._under_way),
            "blocks to report": len(self._worker._outbox._bad_blocks),
        }


_undo: list[tuple[Any, str, Any]] = []


def _replace(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: plant the bug where its work is done now"
    _undo.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


class Planted:
    """The bug that is planted in this process now."""

    name = ""

    def change_to(self, file: Path) -> None:
        """Plant the bug that the file names, in place of the one before."""
        wanted = file.read_text() if file.exists() else ""
        if wanted == self.name:
            return
        while _undo:
            setattr(*_undo.pop())
        if wanted:
            BUGS[wanted].plant()
        self.name = wanted


def no_checksum() -> None:
    """Header and length are still looked at."""
    at = chunk._CHECKSUM_AT
    _replace(chunk, "_checksum", lambda buffer: int.from_bytes(buffer[at : at + 8], "little"))


def wrong_blocks() -> None:
    """A load fills its first two parts the wrong way round."""

    def chunks(self: RequestLoads, match: Match, ids: Sequence[int]) -> ChunkRun:
        found = right(self, match, ids)
        blocks = [part.block_ids for part in found]
        if len(blocks) < 2 or len(blocks[0]) != len(blocks[1]):
            return found
        blocks[:2] = reversed(blocks[:2])
        return ChunkRun(found.specs, match.from_block, [each for part in blocks for each in part])

    right = RequestLoads._chunks
    _replace(RequestLoads, "_chunks", chunks)


def bad_blocks_kept_quiet() -> None:
    """What could not be loaded passes for loaded."""

    def end(self: Loader, job: Any, good: Any, failure: Any, seconds: float) -> None:
        ended(self, job, good, failure, seconds)
        self._outbox.take_bad_blocks()

    ended = Loader._end
    _replace(Loader, "_end", end)


def abort_forgets_blocks() -> None:
    """A load's end is not reported once its request was aborted, so vLLM never gets the blocks back."""

    def get_finished(self: _Connector, finished_req_ids: set[str]) -> Any:
        gone.update(finished_req_ids)
        saved, loaded = finished(self, finished_req_ids)
        return saved, None if loaded is None else loaded - gone

    gone: set[str] = set()
    finished = _Connector.get_finished
    _replace(_Connector, "get_finished", get_finished)


def pins_forgotten() -> None:
    """Every third save keeps the blocks of its first chunk for ever."""

    def release(self: PinnedSave, captured: int) -> None:
        if self not in known:
            known.append(self)
        released(self, captured if known.index(self) % 3 else captured - 1)

    known: list[PinnedSave] = []
    released = PinnedSave.release
    _replace(PinnedSave, "release", release)


@dataclass(frozen=True, slots=True)
class Bug:
    """A violation whose text has one of `says` in it must be found."""

    plant: Callable[[], None]
    says: tuple[str, ...]
    leaks: bool = False
    """Whether the engine is of no use afterwards."""


_WRONG: Final = ("got token", "another logprob")
BUGS: Final = {
    "no-checksum": Bug(no_checksum, _WRONG),
    "wrong-blocks": Bug(wrong_blocks, _WRONG),
    "bad-blocks-kept-quiet": Bug(bad_blocks_kept_quiet, _WRONG),
    "abort-forgets-blocks": Bug(abort_forgets_blocks, ("still held", "hung"), leaks=True),
    "pins-forgotten": Bug(pins_forgotten, ("still held", "hung"), leaks=True),
}
