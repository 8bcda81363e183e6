"""The freezes that are under way, and the last ones that failed, by the names of their windows.

A freeze can outlive its client, so its progress is kept here and not in the client's call. Control thread.
"""

import asyncio
import enum
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cwm_connector.catalog.results import iso
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros, now_micros
from cwm_connector.protocol.results import FreezeProgress, KvCache, Lineage, Status, Timestamps
from cwm_connector.protocol.stats import Transfer

FAILURES_KEPT: Final = 64
"""The newest. `window_status` tells of them."""


class Stage(enum.StrEnum):
    """The stages of a freeze."""

    WAITING = "waiting for its turn"
    COMPUTING = "computing evicted blocks again"
    COPYING = "copying blocks"
    STORING = "storing chunks"
    COMMITTING = "committing"
    PROVING = "taking the proof"


@dataclass(slots=True)
class FreezeUnderWay:
    """One freeze from its start to its end."""

    progress: ProgressSink
    started_at: Micros
    stage: Stage = Stage.WAITING
    done: int = 0
    total: int | None = None
    token_count: int | None = None
    let_go: Callable[[], object] | None = None
    """Unpins the blocks that a recompute has brought back. Called once the save that pins them is planned."""

    def report(self, stage: Stage, done: int, total: int, text: str) -> None:
        """Take down how far the freeze has come, and tell the client."""
        self.stage, self.done, self.total = stage, done, total
        self.progress(done, total, text)


class FreezesUnderWay:
    """One for each engine."""

    def __init__(self) -> None:
        self._under_way: dict[str, FreezeUnderWay] = {}
        self._failures: OrderedDict[str, str] = OrderedDict()
        self._one_ended = asyncio.Event()

    @contextmanager
    def begin(self, name: str, progress: ProgressSink) -> Iterator[FreezeUnderWay]:
        """Keep the name for a freeze until it ends. Raises: `Code.WINDOW_EXISTS` if another freeze has it."""
        self.require_free(name)
        self._under_way[name] = freeze = FreezeUnderWay(progress, now_micros())
        self._failures.pop(name, None)
        try:
            yield freeze
        except BaseException as problem:
            self._note_failure(name, problem)
            raise
        finally:
            del self._under_way[name]
            self._one_ended.set()

    def require_free(self, name: str) -> None:
        """Raise `Code.WINDOW_EXISTS` if a freeze under way will use the name."""
        if name in self._under_way:
            raise CWMError(
                Code.WINDOW_EXISTS,
                f"a freeze of window {name!r} is under way and window_status shows its progress; choose another name",
                window_name=name,
            )

    def status(self, name: str, model: str) -> Status | None:
        """Return window_status's result for a window that is being frozen. None for any other."""
        freeze = self._under_way.get(name)
        if freeze is None:
            return None
        return Status(
            type="window",
            id=name,
            state="freezing",
            model=model,
            token_count=freeze.token_count,
            kv_cache=KvCache(block_count=None, total_size_bytes=None, storage_tier=None, hit_rate=None, tiers=None),
            timestamps=Timestamps(created_at=None, updated_at=None, frozen_at=None, thawed_at=None),
            lineage=Lineage(parent=None, children=[]),
            progress=FreezeProgress(
                stage=freeze.stage.value, done=freeze.done, total=freeze.total, started_at=iso(freeze.started_at)
            ),
        )

    def listed(self) -> list[Transfer]:
        """Return the freezes that are under way, the oldest first."""
        return [
            Transfer(kind="freeze", name=name, done=each.done, total=each.total, started_at=iso(each.started_at))
            for name, each in self._under_way.items()
        ]

    def failure(self, name: str) -> str | None:
        """Return why the last freeze of this name failed. None if it did not, or too many have failed since."""
        return self._failures.get(name)

    async def wait_until_done(self) -> None:
        """Wait until all freezes that are under way now have ended."""
        waiting = set(map(id, self._under_way.values()))
        while not waiting.isdisjoint(map(id, self._under_way.values())):
            self._one_ended.clear()
            await self._one_ended.wait()

    def _note_failure(self, name: str, problem: BaseException) -> None:
        if isinstance(problem, CWMError) and problem.code is Code.WINDOW_EXISTS:
            return  # another one has the name
        self._failures[name] = _reason(problem)
        while len(self._failures) > FAILURES_KEPT:
            self._failures.popitem(last=False)


def _reason(problem: BaseException) -> str:
    match problem:
        case CWMError():
            return str(problem)
        case asyncio.CancelledError():
            return str(CWMError(Code.OPERATION_TIMEOUT, "it was cancelled; freeze the session again"))
    # The text of an unexpected exception may hold tokens or a salt.
    return str(CWMError(Code.INTERNAL, f"it failed with {type(problem).__name__}; see the engine's log"))
