"""Append to the shared log so that the outcome is certain: the record is on Redis's disk, or it is never in the log.

A reply can be lost with its connection, and Redis can execute a command later than it was sent. The outcome is
therefore never guessed. The log is asked for the record. If the record is not there yet, a barrier is appended in its
place, which keeps the record out for good.
"""

import time
from typing import Final

from cwm_connector.catalog.base import OutcomeUnknown
from cwm_connector.catalog.shared.changes import Barrier, Position, Record, record_after
from cwm_connector.catalog.shared.log import RedisLog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis import NoReply

_PAUSE_S: Final = 0.05
"""Seconds between two attempts."""


class Moved(Exception):
    """Raised if another record has the position. The record is not in the log and never will be."""


def append(log: RedisLog, base: Position, record: Record, budget_s: float) -> None:
    """Append the record after `base` and wait until it is on Redis's disk.

    Blocks for up to about `budget_s` seconds. Raises `Moved`, `OutcomeUnknown` if Redis did not answer for so long,
    `Code.BACKEND` or `Code.QUOTA` if Redis refused the record, which is then not in the log, as for `Moved`.
    """
    in_log: bool | None
    try:
        in_log = log.append(base, record)
    except NoReply:
        in_log = None
    deadline = time.monotonic() + budget_s
    while True:
        try:
            if in_log is None:
                in_log = _find_out(log, base, record)
            if not in_log:
                raise Moved
            log.settle()
            return
        except CWMError as problem:
            if problem.code is Code.CORRUPT or time.monotonic() > deadline:
                raise OutcomeUnknown(problem) from problem
            # After any failure the server may have restarted without the record, so look for it again.
            in_log = None
            time.sleep(_PAUSE_S)


def _find_out(log: RedisLog, base: Position, record: Record) -> bool:
    """Return whether the record is in the log. If its position is free, fill that with a barrier.

    Raises `Code.CORRUPT` if the position is no longer in the log, and the errors of the link.
    """
    while True:
        in_log = log.has(record)
        if in_log is not None:
            return in_log
        view = log.look()
        if view is not None and view.head == base:
            if log.append(base, record_after(base, Barrier(), record.engine)):
                return False
            continue
        in_log = log.has(record)
        if in_log is not None:
            return in_log
        raise CWMError(
            Code.CORRUPT,
            "the shared log no longer has the position of this record; restart the engine",
            record=record.at.number,
        )
