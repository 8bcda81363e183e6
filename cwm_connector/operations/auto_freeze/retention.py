"""Retention of a session's automatic windows: their generations, and which of them are deleted.

Each head keeps its own newest windows, so that subagents never push out those of the conversation. Control thread.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from cwm_connector.catalog.base import Catalog, WindowQuery, WindowRow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.auto_freeze.mark import TAG, Mark, mark_of
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.delete import Deleter
from cwm_connector.protocol.calls import DeleteArgs

logger = logging.getLogger(__name__)

_MAX_LISTED: Final = 10_000
"""Automatic windows of one session. The oldest ones beyond that stay."""


class Retention:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, deleter: Deleter) -> None:
        self._engine = engine
        self._deleter = deleter

    async def next_generation(self, session_id: str) -> int:
        """Return the generation of the session's next automatic window."""
        return max((mark.generation for _, mark in await self._automatic(session_id)), default=0) + 1

    async def prune(self, session_id: str, head: str, keep_last: int) -> None:
        """Delete all but the head's newest `keep_last` windows of each kind. 0 keeps all.

        A window that a user has thawed, cloned or described is left alone.
        """
        if not keep_last:
            return
        windows = [(row, mark) for row, mark in await self._automatic(session_id) if row.head == head]
        for name in _beyond(windows, keep_last):
            try:
                await self._deleter.delete(DeleteArgs(name))
            except CWMError as problem:
                if problem.code is not Code.WINDOW_NOT_FOUND:
                    logger.warning("window %s is beyond the retention limit and stays for now: %s", name, problem)
                continue
            logger.info("deleted window %s: %d newer ones of that head are kept", name, keep_last)

    async def _automatic(self, session_id: str) -> list[tuple[WindowRow, Mark]]:
        """Newest first."""
        query = WindowQuery(tags=[TAG], session_id=session_id, limit=_MAX_LISTED)

        def read(catalog: Catalog) -> list[tuple[WindowRow, Mark]]:
            rows = catalog.list_windows(query).windows
            return [(row, mark) for row in rows if (mark := mark_of(row.description, row.tags)) and not row.cloned]

        return await self._engine.catalog.run(read)


def _beyond(windows: Iterable[tuple[WindowRow, Mark]], keep_last: int) -> Iterator[str]:
    seen: defaultdict[str, int] = defaultdict(int)
    for row, mark in windows:
        seen[mark.reason.kind] += 1
        if seen[mark.reason.kind] > keep_last and row.thawed_at is None:
            yield row.name
