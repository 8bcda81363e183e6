"""Following the shared log: what is durable in it goes into the replica, and what that took away is told.

A record that somebody else's process is still making durable is not applied before it is: with `appendfsync always`
that is at once; with `everysec` a second later, when its writer says so, or, should that process have died, once this
one has waited for the sync. So a replica never holds what a Redis that loses its last second could lose.
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FollowLimits:
    """How long things may take and how much may gather."""

    connect_s: float = 1.0
    call_s: float = 3.0
    read_s: float = 0.5
    """For a read: longer without an answer, and it is served as the replica is."""
    pause_s: float = 5.0
    """How long reads leave Redis alone after it failed."""
    write_s: float = 5.0
    """For a write that others keep overtaking, and again to find out what became of one whose reply was lost."""
    patience_s: float = 3.0
    """How long another engine may take to make its record durable before this one does it."""
    log_records: int = 2000
    log_bytes: int = 256 << 20
    """More records, or more bytes of them, since the last checkpoint, and it is time for the next."""
    part_bytes: int = PART_BYTES


USUAL: Final = FollowLimits()


class Follower:
    """Keeps one replica at the log's end; the catalog's thread alone uses it."""

    def __init__(self, log: RedisLog, replica: Replica, on_gone: Callable[[Gone], None], limits: FollowLimits) -> None:
        self.fault: CWMError | None = None
        """Why the last contact failed."""
        self.head: int | None = None
        """How many records the log had when it was last looked at."""
        self._log = log
        self._replica = replica
        self._on_gone = on_gone
        self._limits = limits
        self._paused_until = 0.0
        self._tail: tuple[int, float] | None = None
        """Up to where the log was settled when a record beyond was first seen, and when that was."""

    def fresh(self) -> SqliteCatalog:
        """The replica, caught up if that takes no longer than a moment."""
        if time.monotonic() >= self._paused_until:
            try:
                self.follow(hurried=True)
            except CWMError as problem:
                logger.debug("a read is served as the replica is: %s", problem)
        return self._replica.catalog

    def follow(self, *, hurried: bool = False) -> View:
        """Applies what is durable in the log. `hurried`: waits for nothing, and leaves the rest for another time."""
        try:
            view = self._apply_new(hurried)
        except CWMError as problem:
            self.failed(problem)
            raise
        self.fault, self._paused_until = None, 0.0
        return view

    def failed(self, problem: CWMError) -> None:
        """Reads leave Redis alone for a while."""
        self.fault, self._paused_until = problem, time.monotonic() + self._limits.pause_s

    def _apply_new(self, hurried: bool) -> View:
        deadline = time.monotonic() + self._limits.read_s
        empty = 0
        while True:
            view = self._look(hurried)
            base = self.base(view)
            upto = self._lasting(view, base, hurried)
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
                # Trimmed since the look: the next one shows the checkpoint.
                empty += 1
                continue
            self.tell_gone(gone)

    def _look(self, hurried: bool) -> View:
        """Raises: CWM-4004 if what is there is not the replica's history."""
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
            "Redis holds another history of the shared catalog than this engine has seen: an older copy, or none; "
            "restore the newest copy of Redis, or, to go on with what Redis has, move the replica away and restart",
            replica=str(self._replica.path),
        )

    def base(self, view: View) -> Position:
        """Where the replica stands; in an empty one at the log's beginning."""
        return self._replica.at or Position(view.head.log, 0, view.head.log)

    def _lasting(self, view: View, base: Position, hurried: bool) -> int:
        """Up to where records are known to be on Redis's disk; found out here if their writer does not say so."""
        settled = max(view.settled, base.number)
        if view.head.number <= settled:
            self._tail = None
            return settled
        if not self._log.settles_at_once:
            if self._tail is None or self._tail[0] != settled:
                self._tail = (settled, time.monotonic())
            if hurried or time.monotonic() < self._tail[1] + self._limits.patience_s:
                return settled
        self._log.settle()
        self._log.tell_settled(view.head)
        return view.head.number

    def tell_gone(self, gone: Iterable[Gone]) -> None:
        for each in gone:
            self._on_gone(each)


def _may_continue(at: Position, head: Position) -> bool:
    """False if the log that has this head can't have been at `at`."""
    return head.log == at.log and (head.number > at.number or head == at)
