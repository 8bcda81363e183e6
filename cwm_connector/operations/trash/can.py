"""Puts windows into the trash, brings them back, and deletes for good what has been there long enough.

The trash is part of the catalog (`catalog/trash/base.py`). A window in it keeps its chunks until it is purged:
by age here, or for room in `operations/tiering.py`. Control thread.
"""

import logging
from typing import Final

from cwm_connector.catalog.results import iso
from cwm_connector.catalog.trash.base import TrashedWindow
from cwm_connector.control.async_helpers import finish_even_if_cancelled, run_periodically
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_window_name
from cwm_connector.core.types import Micros, now_micros
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.delete import Deleter
from cwm_connector.operations.tiering import Tiering
from cwm_connector.protocol.calls import DeleteArgs, RestoreArgs, TrashArgs
from cwm_connector.protocol.trash import Restored, Trashed, TrashItem, TrashList

logger = logging.getLogger(__name__)

EXPIRE_EVERY_S: Final = 60.0


class TrashCan:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, tiering: Tiering, deleter: Deleter) -> None:
        self._engine = engine
        self._tiering = tiering
        self._deleter = deleter
        self._kept = int(engine.settings.trash_hours * 3600 * 1_000_000)

    async def put(self, args: TrashArgs) -> Trashed:
        """Move a window into the trash. If nothing is kept there, or the window is damaged, delete it for good."""
        name = check_window_name(args.window_name)
        if self._kept:
            try:
                async with self._engine.chunk_lock:
                    return await finish_even_if_cancelled(self._put(name, args.command))
            except CWMError as problem:
                if problem.code is not Code.CORRUPT:
                    raise
        deleted = await self._deleter.delete(DeleteArgs(name))
        return Trashed(window_name=name, kept_until=None, space_freed_bytes=deleted.space_freed_bytes)

    async def _put(self, name: str, command: str) -> Trashed:
        window = await self._engine.catalog.run(lambda catalog: catalog.trash.put(name, command, now_micros()))
        self._engine.thaw_bindings.unbind(name)
        return Trashed(window_name=name, kept_until=self._until(window), space_freed_bytes=0)

    async def restore(self, args: RestoreArgs) -> Restored:
        """Bring back the windows of the last command, or the newest one of a name. Raises: as `Trash.restore`."""
        name = None if args.window_name is None else check_window_name(args.window_name)
        new_name = None if args.new_name is None else check_window_name(args.new_name)
        if name is None and new_name is not None:
            raise CWMError(Code.ARGUMENT, "a new name needs the name of the window to bring back; give both")

        async with self._engine.chunk_lock:
            for wanted in [new_name or name] if name else await self._names_of_last_command():
                self._engine.freezes.require_free(wanted)
            restored = await finish_even_if_cancelled(
                self._engine.catalog.run(lambda catalog: catalog.trash.restore(name, new_name, now_micros()))
            )
        return Restored(window_names=list(restored))

    async def _names_of_last_command(self) -> list[str]:
        windows = await self._sound_windows()
        return [window.name for window in windows if window.command == windows[-1].command]

    async def listed(self) -> TrashList:
        """Return what the trash holds, the newest first."""
        return TrashList(
            windows=[
                TrashItem(
                    window_name=window.name,
                    token_count=window.token_count,
                    size_bytes=window.size_bytes,
                    deleted_at=iso(window.trashed_at),
                    kept_until=self._until(window),
                )
                for window in reversed(await self._sound_windows())
            ]
        )

    async def run(self) -> None:
        """Call `expire` once a minute until cancelled. Failures are logged and tried again."""
        await run_periodically(self.expire, EXPIRE_EVERY_S, "expiry of the trash")

    async def expire(self) -> None:
        """Delete for good what has been in the trash for `CWM_TRASH_HOURS`, but for windows that can't be deleted."""
        for window in await self._windows():
            if window.trashed_at + self._kept > now_micros():
                continue
            try:
                async with self._engine.chunk_lock:
                    await finish_even_if_cancelled(self._tiering.purge(window))
            except CWMError as problem:
                logger.warning("window %s stays in the trash for now: %s", window.name, problem)
                continue
            logger.info("window %s has left the trash for good", window.name)

    async def _windows(self) -> tuple[TrashedWindow, ...]:
        return await self._engine.catalog.run(lambda catalog: catalog.trash.listed())

    async def _sound_windows(self) -> list[TrashedWindow]:
        """Return the windows that can be brought back, the oldest first."""
        return [window for window in await self._windows() if not window.damaged]

    def _until(self, window: TrashedWindow) -> str:
        return iso(Micros(window.trashed_at + self._kept))
