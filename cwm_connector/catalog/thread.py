"""The one thread that uses the catalog."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cwm_connector.catalog.base import Catalog

T = TypeVar("T")


class CatalogThread:
    """The one thread that uses the catalog for writing."""

    def __init__(self, open_catalog: Callable[[], Catalog]) -> None:
        """Opens the catalog on its thread. Raises what `open_catalog` raises."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cwm-catalog")
        self._catalog = self._thread.submit(open_catalog).result()

    async def run(self, work: Callable[[Catalog], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._catalog)

    def close(self) -> None:
        self._thread.submit(self._catalog.close)
        self._thread.shutdown(wait=True)
