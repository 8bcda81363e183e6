"""The catalog thread of the engine: the only thread that uses its catalog.

The control thread awaits `CatalogThread.run`. The work blocks only the catalog thread and runs in the order of the
calls.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cwm_connector.catalog.base import Catalog

T = TypeVar("T")


class CatalogThread:
    """A thread with an open catalog."""

    def __init__(self, open_catalog: Callable[[], Catalog]) -> None:
        """Start the thread, open the catalog on it and wait for that. Raises the errors of `open_catalog`."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cwm-catalog")
        self._catalog = self._thread.submit(open_catalog).result()

    async def run(self, work: Callable[[Catalog], T]) -> T:
        """Run `work` on the catalog thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._catalog)

    def close(self) -> None:
        """Close the catalog after the work that was queued, and end the thread. Blocks until then."""
        self._thread.submit(self._catalog.close)
        self._thread.shutdown(wait=True)
