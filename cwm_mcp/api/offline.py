"""Answers without an engine, from the catalog. It is opened read-only for each question and never written.

Only a running engine knows what is in memory, what sessions are doing and what was hit. These fields are None.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from cwm_connector.catalog import results
from cwm_connector.catalog.base import Catalog, CatalogTotals, WindowRow
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.protocol.calls import ListArgs, SessionsArgs, StatusArgs, TokensArgs
from cwm_connector.protocol.results import SessionList, Status, WindowList, WindowTokens
from cwm_connector.protocol.stats import KvStore, StoreStats, TierStats

T = TypeVar("T")


class WindowPassport(msgspec.Struct, frozen=True):
    """The properties that an engine must have in common with a window to load it."""

    window_name: str
    passport: dict[str, str]


class OfflineCatalog:
    """Answers as the engine would, as far as it can. Every method blocks on the disk. Any thread may call it.

    A catalog that no engine has made yet is empty. Raises: `Code.READ_FAILED` or `Code.CORRUPT` for one that can't be
    read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def windows(self, args: ListArgs) -> WindowList:
        query = results.parse_list_args(args)

        def listed(catalog: Catalog) -> WindowList:
            return results.window_page(catalog.list_windows(query), query, lambda row: _tier_of(catalog, row))

        return self._read(listed)

    def status(self, args: StatusArgs) -> Status:
        """Return the status of a window or a session.

        Raises: `Code.WINDOW_NOT_FOUND`, `Code.ENGINE_UNREACHABLE` for a session that only an engine could know.
        """
        return self._read(lambda catalog: _status(catalog, args))

    def token_ids(self, args: TokensArgs) -> WindowTokens:
        """Return a window's token ids. Raises: `Code.WINDOW_NOT_FOUND`."""
        ids = self._read(lambda catalog: catalog.token_ids_of(args.window_name))
        return WindowTokens(window_name=args.window_name, token_ids=ids)

    def passport(self, window_name: str) -> WindowPassport:
        """Return a window's passport. Raises: `Code.WINDOW_NOT_FOUND`."""
        return self._read(lambda catalog: WindowPassport(window_name, dict(catalog.window(window_name).passport)))

    def sessions(self, args: SessionsArgs) -> SessionList:
        """Return the sessions that were ever frozen or thawed, as they were then."""
        return self._read(lambda catalog: results.session_page([], args, catalog.sessions))

    def stats(self) -> StoreStats:
        totals, trash = self._read(lambda catalog: (catalog.totals(), results.trash_stats(catalog.trash.totals())))
        ratio = totals.referenced_bytes / totals.stored_bytes if totals.stored_bytes else None
        in_durable_tiers = {
            tier.value: TierStats(blocks=stored.chunks, bytes=stored.stored_bytes, limit_bytes=None)
            for tier, stored in totals.tiers.items()
        }
        return StoreStats(
            kv_store=KvStore(
                total_blocks=totals.chunks,
                total_bytes=totals.stored_bytes,
                hit_rate=None,
                hits=None,
                misses=None,
                dedup_ratio=ratio,
                tiers={TierName.CPU.value: None, **in_durable_tiers},
                trash=trash,
            )
        )

    def totals(self) -> CatalogTotals:
        return self._read(lambda catalog: catalog.totals())

    def _read(self, question: Callable[[Catalog], T]) -> T:
        catalog = SqliteCatalog.open_read_only(self._path)
        try:
            return question(catalog)
        finally:
            catalog.close()


def _tier_of(catalog: Catalog, row: WindowRow) -> str | None:
    """Return the tier that a thaw would read, or None if the window's rows are damaged."""
    try:
        chunks = catalog.chunks_of(row.name)
    except CWMError as problem:
        if problem.code is not Code.CORRUPT:
            raise
        return None
    return results.tier_to_read(results.AsRecorded(chunks).tiers_of([chunk.key for chunk in chunks]), len(chunks))


def _status(catalog: Catalog, args: StatusArgs) -> Status:
    if args.window_name is not None:
        chunks = catalog.chunks_of(args.window_name)
        return results.window_status(
            catalog.window(args.window_name),
            chunks,
            catalog.children(args.window_name),
            results.AsRecorded(chunks),
            include_blocks=args.include_blocks,
            proof=catalog.proof_of(args.window_name),
        )
    row = catalog.session(args.session_id or "")
    if row is None:
        raise CWMError(
            Code.ENGINE_UNREACHABLE,
            f"session {args.session_id!r} was never frozen or thawed, and no engine is there to ask; "
            "start it with 'cwm serve'",
            session_id=args.session_id,
        )
    return results.session_status(results.session_item(row), row)
