"""Finds windows for requests that wait: those that were thawed for them, and those that load without a thaw.

    session   the session's own windows, of which the one with most blocks in common is loaded, the newest on a tie.
              If none has a chunk in common, a window whose conversation the request continues: it repeats at least
              three quarters of the window's blocks.
    prefix    any window, the one with most blocks in common.
    off       only what was thawed.

A private window is never found, and a request with a salt finds only what was thawed for its salt. The whole first
chunk has to be in common, so the first chunks of all windows in memory tell at once that nothing can be found. What a
look-up costs depends on the length of the request and not on the number of windows, except for windows that begin
alike, of which the newest few are compared.

`ask` is called on the engine thread, the rest runs on the control thread, and `_Search` on the catalog thread.
"""

import asyncio
import logging
from array import array
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

from cwm_connector.catalog.base import Catalog, OpenWindows, WindowRow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import Passport, boundaries_of, chunk_specs, specs_of
from cwm_connector.core.types import ChunkKey
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.thaw.beginnings import Beginnings
from cwm_connector.operations.tiering import Tiering
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.sessions.token_run import TokenRun
from cwm_connector.sessions.unnamed import PREFIX as ANONYMOUS
from cwm_connector.settings import AutoThaw
from cwm_connector.step.window_matches import FoundWindows, WindowQuestion

logger = logging.getLogger(__name__)

COMPARED: Final = 8
"""Windows that begin alike and are read and compared with the request, the newest ones."""
LOOKED_AT: Final = 64
"""Windows that begin alike among which those that were thawed into an anonymous session are looked for."""


class CatalogFinder:
    """The `WindowFinder` of one engine."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering
        self._beginnings = Beginnings(lambda: engine.passport, engine.geometry)
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the first chunks of the catalog's windows and begin to answer."""
        await self._engine.catalog.run(lambda catalog: catalog.follow_beginnings(self._beginnings.add))
        self._engine.scheduler.window_matches.finder = self

    def ask(self, question: WindowQuestion) -> "Future[FoundWindows] | None":
        """Start to look for windows. Return None at once if there can't be any. Engine thread; never waits."""
        if not question.thawed and not self._may_find_more(question):
            return None
        answer: Future[FoundWindows] = Future()
        self._loop.call_soon_threadsafe(self._begin, question, answer)
        return answer

    def _may_find_more(self, question: WindowQuestion) -> bool:
        """Return whether windows that were not thawed for the request may fit, or tell which session it continues."""
        if question.salted or (self._engine.settings.auto_thaw is AutoThaw.OFF and not question.anonymous):
            return False
        if not self._engine.passports.is_known:
            return len(self._beginnings) > 0
        return next(self._beginnings.of(question.token_ids, question.max_blocks, question.extras), None) is not None

    # --- the control thread ---

    def _begin(self, question: WindowQuestion, answer: "Future[FoundWindows]") -> None:
        task = asyncio.ensure_future(self._answer(question, answer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, question: WindowQuestion, answer: "Future[FoundWindows]") -> None:
        if not answer.set_running_or_notify_cancel():
            return
        found = FoundWindows()
        try:
            found = await self._find(question)
        except CWMError as problem:
            logger.warning("no windows can be looked up for a request: %s", problem)
        except Exception:
            logger.exception("looking up the windows of a request failed")
        finally:
            answer.set_result(found)
            self._engine.step_queue.nudge()

    async def _find(self, question: WindowQuestion) -> FoundWindows:
        await self._engine.known_passport()
        bindings = self._engine.thaw_bindings
        changes = bindings.changes
        search = _Search(self._engine, question, self._beginnings)
        found = await self._engine.catalog.run(search.run)
        fresh = tuple(pair for pair in found.common if bindings.remember(pair[0], changes))
        if fresh:
            best, common = max(fresh, key=lambda pair: pair[1])
            self._tiering.used(chunk.key for chunk in best.chunks if chunk.first_block < common)
        return replace(found, common=fresh)


class _Search:
    """One look-up. Catalog thread."""

    def __init__(self, engine: EngineContext, question: WindowQuestion, beginnings: Beginnings) -> None:
        self._engine = engine
        self._question = question
        self._beginnings = beginnings
        self._size = engine.geometry.block_tokens
        end = min(len(question.token_ids), question.max_blocks * self._size)
        # Packed in parts, because one conversion of a long list keeps the engine thread from running for milliseconds.
        self._tokens = TokenRun.of_list(question.token_ids, 0, end).packed()
        self._found: dict[str, tuple[BoundWindow, int]] = {}
        self._anonymous: tuple[int, str] = (0, "")

    def run(self, catalog: Catalog) -> FoundWindows:
        """Return what there is. Raises: what the catalog raises, except for single damaged windows."""
        for name in self._question.thawed:
            self._compare(catalog, name, private_too=self._question.salted)
        if not self._question.salted and (keys := self._keys(catalog)):
            self._find_open(catalog, keys)
        common = tuple(pair for pair in self._found.values() if pair[1])
        return FoundWindows(common=common, session_id=self._anonymous[1] or None)

    def _find_open(self, catalog: Catalog, keys: list[ChunkKey]) -> None:
        mode, question = self._engine.settings.auto_thaw, self._question
        everything = OpenWindows(after=self._engine.thaw_bindings.cleared_at)
        if mode is AutoThaw.OFF:
            if question.anonymous:
                self._add_continued(catalog, keys, everything, self._is_thawed_anonymous)
        elif mode is AutoThaw.PREFIX:
            self._add_longest(catalog, keys, everything)
            if question.anonymous:
                self._add_continued(catalog, keys, everything, lambda name: True)
        elif question.session_id is None or not self._add_longest(
            catalog, keys, replace(everything, session_id=question.session_id)
        ):
            self._add_continued(catalog, keys, everything, lambda name: True)

    def _add_longest(self, catalog: Catalog, keys: list[ChunkKey], windows: OpenWindows) -> bool:
        """Add those of the windows that have most in common with the request. Return whether there are any."""
        depth = _depth(catalog, keys, windows)
        names = catalog.open_windows_with(keys[depth - 1], windows, COMPARED) if depth else ()
        return bool(sum(self._compare(catalog, name) > 0 for name in names))

    def _add_continued(
        self, catalog: Catalog, keys: list[ChunkKey], windows: OpenWindows, wanted: Callable[[str], bool]
    ) -> None:
        """Add the windows of which the request repeats at least three quarters.

        Windows that are as long as the request allows are looked at first, and then shorter ones.
        """
        depth = _depth(catalog, keys, windows)
        for end in dict.fromkeys((depth, -(-3 * depth // 4))) if depth else ():
            fitting = replace(windows, max_chunks=(4 * (end + 1) + 2) // 3)
            names = [name for name in catalog.open_windows_with(keys[end - 1], fitting, LOOKED_AT) if wanted(name)]
            common = [self._compare(catalog, name, continued=True) for name in names[:COMPARED]]
            if any(common):
                return

    def _is_thawed_anonymous(self, name: str) -> bool:
        return self._engine.thaw_bindings.anonymous_session_of(name) is not None

    def _compare(self, catalog: Catalog, name: str, *, continued: bool = False, private_too: bool = False) -> int:
        """Read a window, compare it with the request and return the number of common blocks, 0 if it doesn't fit.

        With `continued` it fits only if the request repeats at least three quarters of it.
        """
        try:
            row = catalog.window(name)
            if (row.private and not private_too) or self._engine.passport.first_difference(row.passport) is not None:
                return 0
            window = self._engine.thaw_bindings.window(name) or self._read(catalog, row)
        except CWMError as problem:
            if problem.code not in (Code.CORRUPT, Code.WINDOW_NOT_FOUND):
                raise
            logger.warning("window %s can't be loaded: %s", name, problem)
            return 0
        question = self._question
        common = window.common_blocks(self._tokens, self._size, question.max_blocks, extras=question.extras)
        is_continued = 4 * common >= 3 * window.blocks
        if continued and not is_continued:
            return 0
        self._found.setdefault(name, (window, common))
        if self._question.anonymous and is_continued and common > self._anonymous[0]:
            session = self._engine.thaw_bindings.anonymous_session_of(name) or row.session_id
            if session.startswith(ANONYMOUS):
                self._anonymous = (common, session)
        return common

    def _read(self, catalog: Catalog, row: WindowRow) -> BoundWindow:
        """Return the window, up to its first chunk that no tier is known to have."""
        tokens, name = array("i"), row.name
        tokens.frombytes(catalog.token_ids_of(name))
        rows = catalog.chunks_of(name)
        self._engine.locations.load_from_catalog(rows)
        specs = specs_of(self._engine.geometry, [row.key for row in rows], [row.tokens for row in rows])
        lost = next((spec for spec in specs if self._engine.locations.fastest(spec.key) is None), None)
        return BoundWindow(
            name=name,
            token_ids=tokens,
            chunks=specs,
            usable_blocks=specs[-1].end_block if lost is None else lost.usable_without,
            boundaries=boundaries_of(self._engine.geometry, specs),
            extras=Passport(row.passport).extras,
        )

    def _keys(self, catalog: Catalog) -> list[ChunkKey]:
        """Return the keys of the request's whole chunks, or of its beginning that is a short window's only chunk."""
        question, passport = self._question, self._engine.passport.carrying(self._question.extras)
        specs = chunk_specs(passport, self._engine.geometry, self._tokens)
        whole = [spec.key for spec in specs if spec.blocks == self._engine.geometry.blocks_per_chunk]
        known = list(self._beginnings.of(question.token_ids, question.max_blocks, question.extras))
        if whole and whole[0] in known:
            return whole
        for key in known:
            if catalog.is_open(key, OpenWindows()):
                return [key]
            self._beginnings.discard(key)
        return []


def _depth(catalog: Catalog, keys: list[ChunkKey], windows: OpenWindows) -> int:
    """Return how many leading chunks one of the windows has in common. A window with a chunk has all before it."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high + 1) // 2
        if catalog.is_open(keys[middle - 1], windows):
            low = middle
        else:
            high = middle - 1
    return low
