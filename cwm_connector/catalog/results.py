"""Make the protocol's results from the catalog's rows, for the engine and for clients without one.

These are pure functions: nothing here opens a catalog, asks an engine or blocks. The caller passes in what only a
running engine knows, such as what is in memory. Without it these fields are None. The chunks' rows name their durable
tiers.

In these fields a "block" is a stored chunk. Times are ISO 8601 in UTC to the millisecond: `2026-01-23T09:30:00.250Z`.
"""

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, Protocol

from cwm_connector.catalog.base import ChunkRow, Proof, SortBy, WindowPage, WindowQuery, WindowRow
from cwm_connector.catalog.session_pages import SessionEvent, SessionPage, SessionQuery, SessionRow
from cwm_connector.catalog.trash.base import TrashTotals
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_tags
from cwm_connector.core.speaker import check_session_id
from cwm_connector.core.types import ChunkKey, Micros, TierName
from cwm_connector.protocol import results
from cwm_connector.protocol.calls import MAX_LIMIT, MAX_OFFSET, ListArgs, SessionsArgs
from cwm_connector.protocol.proofs import TakenProof
from cwm_connector.protocol.stats import TrashStats

MAX_SEARCH: Final = 200
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class LocationLookup(Protocol):
    """Knows which tiers hold a chunk right now."""

    def tiers_of(self, keys: Sequence[ChunkKey]) -> dict[str, int]:
        """Return how many of `keys` each tier holds. A chunk can be in several. Tiers with none are left out."""


class AsRecorded:
    """The locations of chunks in their rows. A client without an engine knows no others."""

    def __init__(self, chunks: Iterable[ChunkRow]) -> None:
        self._tiers = {chunk.key: chunk.tiers for chunk in chunks}

    def tiers_of(self, keys: Sequence[ChunkKey]) -> dict[str, int]:
        counts = Counter(tier for key in keys for tier in self._tiers.get(key, ()))
        return {tier.value: counts[tier] for tier in TierName if counts[tier]}


class SessionState(enum.StrEnum):
    ACTIVE = "active"
    FROZEN = "frozen"
    THAWED = "thawed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session as a running engine knows it."""

    session_id: str
    state: SessionState
    model: str
    token_count: int
    heads: int
    cached_tokens: int | None
    """Tokens that are still in the prefix cache. None if the engine was too busy to answer."""
    created_at: Micros
    last_active_at: Micros
    title: str | None = None
    auto_freeze_at: Micros | None = None
    """When auto-freeze will save it if it stays idle."""
    head: str | None = None
    head_reason: str | None = None
    head_names: tuple[str, ...] = ()


def iso(time: Micros) -> str:
    """Return the time in the contract's form, rounded down to a millisecond."""
    return (_EPOCH + timedelta(microseconds=time)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> Micros:
    """Return an ISO 8601 time or date as a time. Without an offset it is UTC. Raises: `Code.ARGUMENT`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CWMError(
            Code.ARGUMENT, f"{text[:80]!r} is not an ISO 8601 time; write it like 2026-01-23T09:30:00Z", time=text[:80]
        ) from None
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return Micros((aware - _EPOCH) // timedelta(microseconds=1))


def parse_list_args(args: ListArgs) -> WindowQuery:
    """Return the checked query. Raises: `Code.SESSION_ID` for the session id, `Code.ARGUMENT` for anything else."""
    _check_page(args)
    if args.sort_by not in list(SortBy):
        raise CWMError(Code.ARGUMENT, f"sort_by is {args.sort_by!r}; use one of {', '.join(SortBy)}")
    if args.sort_order not in ("asc", "desc"):
        raise CWMError(Code.ARGUMENT, f"sort_order is {args.sort_order!r}; use asc or desc")
    if args.search is not None and len(args.search) > MAX_SEARCH:
        raise CWMError(Code.ARGUMENT, f"search has {len(args.search)} characters; shorten it to {MAX_SEARCH}")
    return WindowQuery(
        tags=tuple(check_tags(args.tags)),
        model=args.model,
        search=args.search,
        session_id=None if args.session_id is None else check_session_id(args.session_id),
        created_after=None if args.created_after is None else parse_time(args.created_after),
        created_before=None if args.created_before is None else parse_time(args.created_before),
        sort_by=SortBy(args.sort_by),
        descending=args.sort_order == "desc",
        limit=args.limit,
        offset=args.offset,
    )


def _check_page(args: ListArgs | SessionsArgs) -> None:
    if not 1 <= args.limit <= MAX_LIMIT:
        raise CWMError(Code.ARGUMENT, f"limit is {args.limit}; give 1 to {MAX_LIMIT}")
    if not 0 <= args.offset <= MAX_OFFSET:
        raise CWMError(Code.ARGUMENT, f"offset is {args.offset}; give 0 to {MAX_OFFSET}")


def storage_tier(tiers: Mapping[str, int]) -> str:
    """Return the fastest tier that holds all chunks, which is where a thaw reads them. `tiers` counts them by tier."""
    whole = max(tiers.values(), default=0)
    return next((tier.value for tier in TierName if whole and tiers.get(tier.value) == whole), TierName.DISK.value)


def tier_to_read(tiers: Mapping[str, int], chunks: int) -> str | None:
    """Return the fastest tier with all `chunks`, else the slowest with some of them, or None if no tier has any."""
    if max(tiers.values(), default=0) == chunks:
        return storage_tier(tiers)
    return next((tier.value for tier in reversed(TierName) if tiers.get(tier.value)), None)


def window_state(row: WindowRow) -> str:
    """Return the state: damaged if only the name is known, thawed if it ever was, else frozen."""
    if row.damaged:
        return "damaged"
    return "frozen" if row.thawed_at is None else "thawed"


def window_item(row: WindowRow, tier: str | None) -> results.WindowItem:
    """Return a window's entry in window_list. Of a damaged window only the name and the state are known."""
    if row.damaged:
        return results.WindowItem(
            name=row.name,
            description=None,
            tags=[],
            model=None,
            token_count=None,
            size_bytes=None,
            unique_bytes=None,
            storage_tier=None,
            state=window_state(row),
            created_at=None,
            parent_window=None,
            session_id=None,
        )
    return results.WindowItem(
        name=row.name,
        description=row.description,
        tags=list(row.tags),
        model=row.model,
        token_count=row.token_count,
        size_bytes=row.size_bytes,
        unique_bytes=row.unique_bytes,
        storage_tier=tier,
        state=window_state(row),
        created_at=iso(row.created_at),
        parent_window=row.parent,
        session_id=row.session_id,
    )


def window_page(page: WindowPage, query: WindowQuery, tier_of: Callable[[WindowRow], str | None]) -> results.WindowList:
    """Return window_list's result. `tier_of` names the tier that a thaw of a window would read."""
    return results.WindowList(
        windows=[window_item(row, tier_of(row)) for row in page.windows],
        total=page.total,
        has_more=query.offset + len(page.windows) < page.total,
    )


def window_status(
    row: WindowRow,
    chunks: Sequence[ChunkRow],
    children: Sequence[str],
    locations: LocationLookup,
    *,
    include_blocks: bool = False,
    hit_rate: float | None = None,
    proof: Proof | None = None,
) -> results.Status:
    """Return window_status's result for a window.

    Imported content was frozen before its import. A clone has no other freeze time than its own creation.
    """
    tiers = locations.tiers_of([chunk.key for chunk in chunks])
    return results.Status(
        type="window",
        id=row.name,
        state=window_state(row),
        model=row.model,
        token_count=row.token_count,
        kv_cache=results.KvCache(
            block_count=row.block_count,
            total_size_bytes=row.size_bytes,
            storage_tier=tier_to_read(tiers, len(chunks)),
            hit_rate=hit_rate,
            tiers=tiers,
        ),
        timestamps=results.Timestamps(
            created_at=iso(row.created_at),
            updated_at=iso(row.updated_at),
            frozen_at=iso(row.frozen_at),
            thawed_at=None if row.thawed_at is None else iso(row.thawed_at),
        ),
        lineage=results.Lineage(parent=row.parent, children=list(children)),
        blocks=[_block(chunk, locations) for chunk in chunks] if include_blocks else None,
        proof=None if proof is None else taken_proof(proof),
        description=row.description,
        tags=list(row.tags),
        session_id=row.session_id,
        head=row.head or None,
        restorable_tokens=row.restorable_tokens,
        unique_bytes=row.unique_bytes,
        private=row.private,
        made_by=_made_by(row),
        origin=_origin(row),
    )


def _made_by(row: WindowRow) -> Literal["freeze", "clone", "import"]:
    """Return which operation made the window."""
    if row.cloned:
        return "clone"
    return "freeze" if row.origin is None else "import"


def _origin(row: WindowRow) -> results.ImportOrigin | None:
    """Return where the content was imported from as results show it, or None."""
    origin = row.origin
    if origin is None:
        return None
    return results.ImportOrigin(
        exported_as=origin.exported_as, frozen_from=origin.frozen_from, resharded_from=origin.ranks
    )


def trash_stats(totals: TrashTotals) -> TrashStats:
    """Return the trash's part of the statistics."""
    return TrashStats(windows=totals.windows, bytes=totals.freeable_bytes)


def taken_proof(proof: Proof) -> TakenProof:
    """Return a proof as results show it."""
    return TakenProof(token_id=proof.token_id, logprob=proof.logprob, taken_at=iso(proof.taken_at))


def _block(chunk: ChunkRow, locations: LocationLookup) -> results.Block:
    return results.Block(
        hash=chunk.key.hex(),
        tokens=chunk.tokens,
        size_bytes=chunk.size_bytes,
        storage_tier=tier_to_read(locations.tiers_of([chunk.key]), 1),
    )


def session_item(row: SessionRow) -> results.SessionItem:
    """Return the entry in session_list of a session that no engine knows any more, as it was last frozen or thawed."""
    return results.SessionItem(
        session_id=row.session_id,
        state=SessionState(row.event.value).value,
        model=row.model,
        token_count=row.token_count,
        heads=None,
        cached_tokens=None,
        # The engine that knew more is gone. A freeze or a thaw is the last sign of life.
        last_active_at=iso(row.updated_at),
        created_at=iso(row.created_at),
        windows=list(row.windows),
        title=None,
        auto_freeze_at=None,
    )


def live_session_item(live: LiveSession, row: SessionRow | None) -> results.SessionItem:
    """Return the entry in session_list of a session of the running engine. `row` is its record in the catalog."""
    return results.SessionItem(
        session_id=live.session_id,
        state=live.state.value,
        model=live.model,
        token_count=live.token_count,
        heads=live.heads,
        cached_tokens=live.cached_tokens,
        last_active_at=iso(live.last_active_at),
        created_at=iso(live.created_at if row is None else min(live.created_at, row.created_at)),
        windows=[] if row is None else list(row.windows),
        title=live.title,
        auto_freeze_at=None if live.auto_freeze_at is None else iso(live.auto_freeze_at),
        head=live.head,
        head_reason=live.head_reason,
        head_names=list(live.head_names) if len(live.head_names) > 1 else None,
    )


def session_page(
    live: Sequence[results.SessionItem], args: SessionsArgs, stored: Callable[[SessionQuery], SessionPage]
) -> results.SessionList:
    """Return session_list's result: a page of the engine's sessions, then of other `stored` ones.

    Raises: `Code.ARGUMENT` for a wrong argument.
    """
    _check_page(args)
    if args.state_filter not in (None, *SessionState):
        raise CWMError(Code.ARGUMENT, f"state_filter is {args.state_filter!r}; use one of {', '.join(SessionState)}")
    matching = [item for item in live if args.state_filter in (None, item.state) and args.model in (None, item.model)]
    end = args.offset + args.limit
    page = list(matching[args.offset : end])
    total = len(matching)
    if args.state_filter in (None, *SessionEvent):
        more = stored(
            SessionQuery(
                event=None if args.state_filter is None else SessionEvent(args.state_filter),
                model=args.model,
                without=[item.session_id for item in live],
                limit=args.limit - len(page),
                offset=max(0, args.offset - len(matching)),
            )
        )
        page += [session_item(row) for row in more.sessions]
        total += more.total
    return results.SessionList(sessions=page, total=total, has_more=end < total)


def session_status(item: results.SessionItem, row: SessionRow | None) -> results.Status:
    """Return window_status's result for a session, from its entry in session_list. Only its windows are stored."""
    event_at = None if row is None else iso(row.updated_at)
    return results.Status(
        type="session",
        id=item.session_id,
        state=item.state,
        model=item.model,
        token_count=item.token_count,
        kv_cache=results.KvCache(block_count=None, total_size_bytes=None, storage_tier=None, hit_rate=None, tiers=None),
        timestamps=results.Timestamps(
            created_at=item.created_at,
            updated_at=item.last_active_at or event_at,
            frozen_at=event_at if row is not None and row.event is SessionEvent.FROZEN else None,
            thawed_at=event_at if row is not None and row.event is SessionEvent.THAWED else None,
        ),
        lineage=results.Lineage(parent=None, children=item.windows),
    )
