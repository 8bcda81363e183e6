"""Appending to the shared log so that the answer is known: in it, on Redis's disk; or not in it, now and ever.

A reply can be lost with its connection, and a command that was sent can be executed later still. So nothing is guessed:
the log is asked for the record, and where it is not there yet, a barrier takes its place.
"""

import time
from typing import Final

from cwm_connector.catalog.base import OutcomeUnknown
from cwm_connector.catalog.shared.changes import Barrier, Position, Record, record_after
from cwm_connector.catalog.shared.log import RedisLog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis.link import NoReply

_PAUSE_S: Final = 0.05


class Moved(Exception):
    """The log has another record in that place: this one is not in it and never will be."""


def append(log: RedisLog, base: Position, record: Record, budget_s: float) -> None:
    """Returns once the record is in the log behind `base` and on Redis's disk.

    Raises: Moved; OutcomeUnknown if Redis stayed away for `budget_s`; CWM-5002 or CWM-4003 if Redis refused it, which
    is the same as Moved.
    """
    held: bool | None
    try:
        held = log.append(base, record)
    except NoReply:
        held = None
    deadline = time.monotonic() + budget_s
    while True:
        try:
            if held is None:
                held = _whether(log, base, record)
            if not held:
                raise Moved
            log.settle()
            return
        except CWMError as problem:
            if problem.code is Code.CORRUPT or time.monotonic() > deadline:
                raise OutcomeUnknown(problem) from problem
            # Whatever went wrong, a server that restarted without the record is possible: look for it again.
            held = None
            time.sleep(_PAUSE_S)


def _whether(log: RedisLog, base: Position, record: Record) -> bool:
    """Whether the record is in the log. Raises: CWM-4004 if that can't be known any more; what the link raises."""
    while True:
        held = log.has(record)
        if held is not None:
            return held
        view = log.look()
        if view is not None and view.head == base:
            if log.append(base, record_after(base, Barrier(), record.engine)):
                return False
            continue
        held = log.has(record)
        if held is not None:
            return held
        raise CWMError(Code.CORRUPT, "the log no longer has that place; restart the engine", record=record.at.number)
