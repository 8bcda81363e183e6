"""Follow the shared log: apply its durable records to the replica, and report what they removed.

A record of another engine is not applied before it is on Redis's disk. With `appendfsync always` it is there at once.
With `everysec` it takes a second, and the engine that wrote it marks it as durable. If that engine has died, this
engine waits for the sync itself. A replica therefore never contains a record that Redis can lose.

Catalog thread only. May block on Redis for the times in `FollowLimits`, and on the disk.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cwm_connector.catalog.shared.changes import Position
from cwm_connector.catalog.shared.checkpoint import PART_BYTES
from cwm_connector.catalog.shared.log import RedisLog, Trimmed, View, damaged
from cwm_connector.catalog.shared.replica import Gone, Replica
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.units import MIB

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FollowLimits:
    """The time-outs, in seconds, and the sizes at which a checkpoint is due."""

    connect_s: float = 1.0
    """For a connection to Redis."""
    call_s: float = 3.0
    """For the reply to a call."""
    read_s: float = 0.5
    """For Redis's answer to a read. After that, the replica answers as it is."""
    pause_s: float = 5.0
    """After a failure, for which reads do not ask Redis."""
    write_s: float = 5.0
    """For a write that other engines overtake, and again to find out the outcome of one whose reply was lost."""
    patience_s: float = 3.0
    """For another engine to make its record durable, before this engine does it."""
    log_records: int = 2000
    """Records since the last checkpoint at which the next one is due."""
    log_bytes: int = 256 * MIB
    """Bytes of records since the last checkpoint at which the next one is due."""
    part_bytes: int = PART_BYTES
    """The size of a checkpoint's parts."""


USUAL: Final = FollowLimits()


@dataclass(frozen=True, slots=True)
class Sharing:
    """How far this engine has followed the shared catalog, as of the last contact with Redis."""

    connected: bool
    applied: int
    """Records of the log that the replica has applied."""
    behind: int | None
    """Records that it has not applied, or None if that is not known."""
    durable: bool
    """True if everything that this engine ever sent has a known outcome. See `Catalog.is_durable`."""
    fault: CWMError | None
    """The reason why the last attempt to catch up failed."""


class Follower:
    """Keeps one replica at the end of the log."""

    def __init__(self, log: RedisLog, replica: Replica, on_gone: Callable[[Gone], None], limits: FollowLimits) -> None:
        self.fault: CWMError | None = None
        """The reason why the last contact failed, or None if it did not."""
        self.head: int | None = None
        """Records in the log when it was last read, or None if there was no log."""
        self._log = log
        self._replica = replica
        self._on_gone = on_gone
        self._limits = limits
        self._paused_until = 0.0
        self._tail: tuple[int, float] | None = None
        """The last durable record when a record after it was first seen, and the time of that."""

    def fresh(self) -> SqliteCatalog:
        """Return the replica, caught up if Redis answers within `read_s`."""
        if time.monotonic() >= self._paused_until:
            try:
                self.follow(hurried=True)
            except CWMError as problem:
                logger.debug("a read is answered by the replica as it is: %s", problem)
        return self._replica.catalog

    def follow(self, *, hurried: bool = False) -> View:
        """Apply the durable records of the log and return its state.

        If `hurried`, do not wait for other engines, and leave what takes longer to another call.
        """
        try:
            view = self._apply_new(hurried)
        except CWMError as problem:
            self.failed(problem)
            raise
        self.fault, self._paused_until = None, 0.0
        return view

    def failed(self, problem: CWMError) -> None:
        """Record a failure. Reads do not ask Redis for `pause_s` seconds then."""
        self.fault, self._paused_until = problem, time.monotonic() + self._limits.pause_s

    def _apply_new(self, hurried: bool) -> View:
        deadline = time.monotonic() + self._limits.read_s
        empty = 0
        while True:
            view = self._look(hurried)
            base = self.base(view)
            upto = self._durable_up_to(view, base, hurried)
            if upto <= base.number or (hurried and time.monotonic() > deadline):
                return view
            try:
                records = self._log.read(base)
            except Trimmed:
                records = []
            records = [record for record in records if record.at.number <= upto]
            if records:
                gone = self._replica.absorb(records)
            elif view.checkpoint is not None and view.checkpoint.number > base.number:
                if hurried:
                    return view
                gone = self._replica.load(self._log, view.checkpoint)
            elif empty:
                raise damaged(f"record {base.number + 1} is missing")
            else:
                # The log was trimmed since `_look`. The next call shows the checkpoint.
                empty += 1
                continue
            self.report_gone(gone)

    def _look(self, hurried: bool) -> View:
        """Return the state of the log. Raises `Code.CORRUPT` if it is not the log of the replica."""
        timeout_s = self._limits.read_s if hurried else None
        view = self._log.look(timeout_s)
        if view is None and self._replica.at is None:
            self._log.create()
            view = self._log.look(timeout_s)
            if view is None:
                raise damaged("its facts are missing")
        self.head = None if view is None else view.head.number
        at = self._replica.at
        if view is None or (at is not None and not _may_continue(at, view.head)):
            raise self._other_history()
        return view

    def _other_history(self) -> CWMError:
        return CWMError(
            Code.CORRUPT,
            "Redis has another history of the shared catalog than this engine, such as an older backup or none at all; "
            "restore the newest backup of Redis, or move the replica away and restart to continue with what Redis has",
            replica=str(self._replica.path),
        )

    def base(self, view: View) -> Position:
        """Return the position of the replica. For an empty replica this is the beginning of the log."""
        return self._replica.at or Position(view.head.log, number=0, seal=view.head.log)

    def _durable_up_to(self, view: View, base: Position, hurried: bool) -> int:
        """Return the last record that is known to be on Redis's disk.

        If the engine that wrote a record does not mark it as durable within `patience_s`, wait for the sync here.
        """
        durable = max(view.durable, base.number)
        if view.head.number <= durable:
            self._tail = None
            return durable
        if not self._log.settles_at_once:
            if self._tail is None or self._tail[0] != durable:
                self._tail = (durable, time.monotonic())
            if hurried or time.monotonic() < self._tail[1] + self._limits.patience_s:
                return durable
        self._log.settle()
        self._log.mark_durable(view.head)
        return view.head.number

    def report_gone(self, gone: Iterable[Gone]) -> None:
        """Call `on_gone` with each of them."""
        for each in gone:
            self._on_gone(each)


def _may_continue(at: Position, head: Position) -> bool:
    """Return whether a log with this head can have been at the position `at`."""
    return head.log == at.log and (head.number > at.number or head == at)
