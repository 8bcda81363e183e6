"""The shared catalog: several engines, one log in Redis, and in each engine a SQLite replica that answers every read.

    write:  catch up -> run it in an open SQLite transaction -> append to the log if nobody else has meanwhile -> on
            Redis's disk -> commit the replica with its new position -> acknowledged
    read:   catch up if Redis answers at once -> ask the replica

Names, references and limits are checked against the log's head itself, because the append succeeds only there. Where
Redis is away, reads go on from the replica and say so (`state`), and writes fail with CWM-5002.

Threads: like every catalog it belongs to one thread; a checkpoint that is due is made on a thread of its own.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cwm_connector.catalog.base import (
    Binding,
    CatalogTotals,
    ChunkRow,
    DeletedWindow,
    NewWindow,
    OutcomeUnknown,
    SessionRow,
    WindowPage,
    WindowQuery,
    WindowRow,
)
from cwm_connector.catalog.shared.append import Moved, append
from cwm_connector.catalog.shared.changes import (
    Barrier,
    Bind,
    Change,
    Clone,
    Commit,
    Delete,
    Position,
    Sweep,
    Tag,
    perform,
    record_after,
)
from cwm_connector.catalog.shared.checkpoint import publish, sweep_leftovers
from cwm_connector.catalog.shared.follow import USUAL, Follower, FollowLimits
from cwm_connector.catalog.shared.log import RedisLog, Trimmed, View
from cwm_connector.catalog.shared.replica import Gone, Replica
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros, TierName
from cwm_connector.redis.link import RedisLink

logger = logging.getLogger(__name__)
_FAREWELL_S: Final = 5.0
"""What a checkpoint under way gets at the end; one that is cut off does no harm."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How this engine stands to the shared catalog."""

    connected: bool
    applied: int
    """Records of the log that the replica has applied."""
    behind: int | None
    """Records that it has not, when Redis was last asked; None: not known."""
    settled: bool
    """Nothing that this engine ever sent can still arrive in the log: what has no row now is not referred to."""
    fault: CWMError | None
    """Why the last attempt to catch up failed."""


class RedisCatalog:
    """`Catalog` over a shared log; see the module's text."""

    def __init__(
        self, url: str, namespace: str, replica: Replica, on_gone: Callable[[Gone], None], limits: FollowLimits
    ):
        self._url = url
        self._namespace = namespace
        self._replica = replica
        self._limits = limits
        self._log = self._open_log()
        self._follower = Follower(self._log, replica, on_gone, limits)
        self._settled = False
        self._compaction: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        url: str,
        namespace: str,
        replica_path: Path,
        *,
        store: str = "",
        on_gone: Callable[[Gone], None] = lambda gone: None,
        limits: FollowLimits = USUAL,
    ) -> "RedisCatalog":
        """Opens the replica and catches up; with Redis away it starts as the replica is, and tries again later.

        `on_gone` is told, on this thread, what others deleted; `store`: see `SqliteFile.open`.
        Raises: as `SqliteFile.open`; CWM-1003 for a Redis that can't keep a catalog, or a replica with windows that are
        not shared; CWM-4004 if Redis holds another history than the replica, or a damaged one.
        """
        sweep_leftovers(replica_path)
        catalog = cls(url, namespace, Replica.open(replica_path, store), on_gone, limits)
        try:
            catalog.catch_up()
        except CWMError as problem:
            if problem.code in (Code.CORRUPT, Code.ARGUMENT):
                catalog.close()
                raise
            logger.warning("the shared catalog is out of reach, reads are served as they were last known: %s", problem)
        return catalog

    def _open_log(self) -> RedisLog:
        link = RedisLink(self._url, connect_timeout_s=self._limits.connect_s, timeout_s=self._limits.call_s)
        return RedisLog(link, self._namespace)

    # --- sharing ---

    def catch_up(self) -> None:
        """Applies what others did; one round trip where there is nothing new. The engine calls it every second or so.

        Raises: CWM-5002 with Redis away; CWM-4004 if Redis holds another history than the replica, or a damaged one.
        """
        if self._settled:
            self._follower.follow()
        else:
            # Once a record of ours is in the log, whatever was sent for an earlier place can't arrive any more.
            self._write(Barrier())

    def sharing(self) -> Sharing:
        """As of the last contact; asks nobody."""
        at = self._replica.at
        applied = 0 if at is None else at.number
        head, fault = self._follower.head, self._follower.fault
        behind = None if head is None or fault is not None else max(0, head - applied)
        return Sharing(behind is not None, applied, behind, self._settled, fault)

    def is_durable(self) -> bool:
        return self._settled

    def state(self) -> str | None:
        return None if self._follower.fault is None else self._follower.fault.message

    def compact(self) -> int:
        """Makes a checkpoint and drops the log's records up to it: nothing of a deleted window is left in them."""
        self._end_compaction(None)
        self._follower.follow()
        freed = self._replica.catalog.compact()
        return freed + publish(self._log, self._replica.path, self._limits.part_bytes)

    # --- writes ---

    def commit_window(self, new: NewWindow) -> WindowRow:
        row: WindowRow = self._write(Commit(new))
        return row

    def clone_window(
        self, source: str, target: str, description: str | None, tags: Sequence[str] | None, now: Micros
    ) -> WindowRow:
        row: WindowRow = self._write(Clone(source, target, description, None if tags is None else tuple(tags), now))
        return row

    def delete_window(self, name: str, keep: Iterable[ChunkKey] = ()) -> DeletedWindow:
        deleted: DeletedWindow = self._write(Delete(name, tuple(keep)))
        return deleted

    def sweep_unreferenced(self, keep: Iterable[ChunkKey] = ()) -> tuple[ChunkRow, ...]:
        swept: tuple[ChunkRow, ...] = self._write(Sweep(tuple(keep)))
        return swept

    def tag_window(
        self, name: str, add: Sequence[str], remove: Sequence[str], description: str | None, now: Micros
    ) -> WindowRow:
        row: WindowRow = self._write(Tag(name, tuple(add), tuple(remove), description, now))
        return row

    def bind(self, binding: Binding) -> None:
        self._write(Bind(binding))

    # --- reads ---

    def window(self, name: str) -> WindowRow:
        return self._follower.fresh().window(name)

    def children(self, name: str) -> tuple[str, ...]:
        return self._follower.fresh().children(name)

    def list_windows(self, query: WindowQuery) -> WindowPage:
        return self._follower.fresh().list_windows(query)

    def token_ids_of(self, name: str) -> bytes:
        return self._follower.fresh().token_ids_of(name)

    def chunks_of(self, name: str) -> tuple[ChunkRow, ...]:
        return self._follower.fresh().chunks_of(name)

    def stored(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, ChunkRow]:
        return self._follower.fresh().stored(keys)

    def all_chunks(self) -> tuple[ChunkRow, ...]:
        return self._follower.fresh().all_chunks()

    def windows_with(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, tuple[str, ...]]:
        return self._follower.fresh().windows_with(keys)

    def bindings(self) -> tuple[Binding, ...]:
        return self._follower.fresh().bindings()

    def last_thaw_into(self, session_id: str) -> Binding | None:
        return self._follower.fresh().last_thaw_into(session_id)

    def session(self, session_id: str) -> SessionRow | None:
        return self._follower.fresh().session(session_id)

    def sessions(self) -> tuple[SessionRow, ...]:
        return self._follower.fresh().sessions()

    def totals(self) -> CatalogTotals:
        return self._follower.fresh().totals()

    # --- the engine's own: in the replica alone ---

    def chunks_after(self, last: ChunkKey | None, limit: int) -> tuple[ChunkRow, ...]:
        return self._replica.catalog.chunks_after(last, limit)

    def chunks_by_use(self) -> tuple[tuple[ChunkKey, Micros], ...]:
        return self._replica.catalog.chunks_by_use()

    def place(self, tier: TierName, came: Sequence[ChunkKey], went: Sequence[ChunkKey]) -> None:
        self._replica.catalog.place(tier, came, went)

    def note(self, name: str, text: str | None) -> None:
        self._replica.catalog.note(name, text)

    def noted(self, name: str) -> str | None:
        return self._replica.catalog.noted(name)

    def check_integrity(self) -> None:
        self._replica.catalog.check_integrity()

    def close(self) -> None:
        self._end_compaction(_FAREWELL_S)
        self._log.close()
        self._replica.close()

    # --- inside: writing ---

    def _write(self, change: Change) -> Any:
        """What the catalog's method returns. Raises: what it raises; CWM-7003 if others are always faster; CWM-5002;
        OutcomeUnknown."""
        deadline = time.monotonic() + self._limits.write_s
        while True:
            view = self._follower.follow()
            try:
                result = self._attempt(change, view)
            except Moved:
                if time.monotonic() > deadline:
                    raise CWMError(
                        Code.BUSY,
                        "other engines keep changing the shared catalog; call again",
                        tried_s=self._limits.write_s,
                    ) from None
                continue
            except OutcomeUnknown as problem:
                self._follower.failed(problem)
                raise
            self._compact_if_due(view)
            return result

    def _attempt(self, change: Change, view: View) -> Any:
        replica = self._replica
        appended = False
        record = None
        try:
            with replica.file.writing():
                base, gone = self._apply_tail(view)
                result = perform(change, replica.catalog)
                if isinstance(change, Sweep) and not result:
                    raise _Nothing
                record = record_after(base, change, replica.engine)
                replica.note(record.at)
                try:
                    append(self._log, base, record, self._limits.write_s)
                except OutcomeUnknown:
                    self._settled = False
                    raise
                appended = True
        except _Nothing:
            return ()
        except CWMError as problem:
            if not appended or record is None:
                raise
            # It has happened; that this file could not take it as well is made up for when it can be written again.
            self._follower.failed(problem)
            self._settled = True
            self._tell_settled(record.at)
            return result
        replica.at = record.at
        self._settled = True
        self._tell_settled(record.at)
        self._follower.tell_gone(gone)
        return result

    def _apply_tail(self, view: View) -> tuple[Position, list[Gone]]:
        """Inside the transaction: what others appended and nobody knows to be on disk; with our record behind it, it
        will be."""
        base = self._follower.base(view)
        gone: list[Gone] = []
        while base.number < view.head.number:
            try:
                records = self._log.read(base)
            except Trimmed:
                raise Moved from None
            if not records:
                raise Moved
            went, _ = self._replica.apply(records)
            gone += went
            base = records[-1].at
        return base, gone

    def _tell_settled(self, at: Position) -> None:
        try:
            self._log.tell_settled(at)
        except CWMError as problem:
            # Others find out by themselves after a while.
            self._follower.failed(problem)

    # --- inside: checkpoints ---

    def _compact_if_due(self, view: View) -> None:
        before = 0 if view.checkpoint is None else view.checkpoint.number
        if view.head.number - before < self._limits.log_records and view.bytes < self._limits.log_bytes:
            return
        if self._compaction is None or not self._compaction.is_alive():
            self._compaction = threading.Thread(target=self._compact_aside, name="cwm-checkpoint", daemon=True)
            self._compaction.start()

    def _compact_aside(self) -> None:
        log = self._open_log()
        try:
            publish(log, self._replica.path, self._limits.part_bytes)
        except (CWMError, OSError) as problem:
            logger.warning("no checkpoint of the shared catalog could be made, the next write tries again: %s", problem)
        finally:
            log.close()

    def _end_compaction(self, timeout_s: float | None) -> None:
        if self._compaction is not None:
            self._compaction.join(timeout_s)


class _Nothing(Exception):
    """The transaction would change nothing."""
