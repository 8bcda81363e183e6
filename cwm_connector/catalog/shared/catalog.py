"""The shared catalog: one log in Redis, and in each engine a SQLite replica that answers every read.

A write takes these steps:

1. Catch up with the log.
2. Run the change in an open SQLite transaction.
3. Append the change to the log. This fails if another engine has appended something since, and the write starts again.
4. Wait until the record is on Redis's disk.
5. Commit the replica with its new position, and return.

A read catches up if Redis answers at once, and is then answered by the replica.

The append succeeds only at the head of the log, so names, references and limits are always checked against the newest
state. While Redis does not answer, reads are served from the replica, `state` says so, and writes fail with
`Code.BACKEND`.

Like every catalog it belongs to one thread. A checkpoint that is due is made on the `cwm-checkpoint` thread. Every
method may block on Redis, for at most the times in `FollowLimits`, and on the disk.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from cwm_connector.catalog.base import (
    Binding,
    CatalogTotals,
    ChunkRow,
    DeletedWindow,
    NewWindow,
    OpenWindows,
    OutcomeUnknown,
    Proof,
    StructureCheck,
    WindowPage,
    WindowQuery,
    WindowRow,
)
from cwm_connector.catalog.session_pages import SessionPage, SessionQuery, SessionRow
from cwm_connector.catalog.shared.append import Moved, append
from cwm_connector.catalog.shared.changes import (
    Barrier,
    Bind,
    Change,
    Clone,
    Commit,
    Delete,
    Position,
    Prove,
    Rename,
    Sweep,
    Tag,
    perform,
    record_after,
)
from cwm_connector.catalog.shared.checkpoint import publish, sweep_leftovers
from cwm_connector.catalog.shared.follow import USUAL, Follower, FollowLimits, Sharing
from cwm_connector.catalog.shared.log import RedisLog, Trimmed, View
from cwm_connector.catalog.shared.replica import Gone, Replica
from cwm_connector.catalog.trash.shared import RedisTrash
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros, TierName
from cwm_connector.redis import RedisLink

logger = logging.getLogger(__name__)
_CLOSE_TIMEOUT_S: Final = 5.0
"""Seconds that `close` waits for a checkpoint under way. Ending one early does no harm."""


class RedisCatalog:
    """`Catalog` over a shared log. The module's docstring describes how it reads and writes."""

    def __init__(
        self, url: str, namespace: str, replica: Replica, on_gone: Callable[[Gone], None], limits: FollowLimits
    ):
        """Take an open replica. `open` is the usual way to make a catalog."""
        self._url = url
        self._namespace = namespace
        self._replica = replica
        self._limits = limits
        self._log = self._open_log()
        self._follower = Follower(self._log, replica, on_gone, limits)
        self.trash = RedisTrash(self._write, lambda: self._follower.fresh().trash)
        self._durable = False
        self._compaction: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        url: str,
        namespace: str,
        replica_path: Path,
        *,
        home_id: str = "",
        on_gone: Callable[[Gone], None] = lambda gone: None,
        limits: FollowLimits = USUAL,
    ) -> "RedisCatalog":
        """Open the replica and catch up with the log.

        If Redis does not answer, the replica is used as it is, and later calls try again. `on_gone` is called on this
        thread with what other engines deleted. `home_id` is that of `SqliteFile.open`.
        Raises the errors of `SqliteFile.open`, `Code.ARGUMENT` for a Redis that can't keep a catalog or a replica with
        windows that are not shared, `Code.CORRUPT` if the log in Redis is damaged or is not the replica's.
        """
        sweep_leftovers(replica_path)
        catalog = cls(url, namespace, Replica.open(replica_path, home_id), on_gone, limits)
        try:
            catalog.catch_up()
        except CWMError as problem:
            if problem.code in (Code.CORRUPT, Code.ARGUMENT):
                catalog.close()
                raise
            logger.warning("the shared catalog can't be reached, reads return its last known state: %s", problem)
        return catalog

    def _open_log(self) -> RedisLog:
        link = RedisLink(self._url, connect_timeout_s=self._limits.connect_s, timeout_s=self._limits.call_s)
        return RedisLog(link, self._namespace)

    # --- sharing ---

    def catch_up(self) -> None:
        """Apply the changes of other engines. The engine calls it about once a second.

        It costs one round trip if there is nothing new. Raises `Code.BACKEND` if Redis does not answer, `Code.CORRUPT`
        if the log in Redis is damaged or is not the replica's.
        """
        if self._durable:
            self._follower.follow()
        else:
            # Once a record of ours is in the log, nothing that was sent for an earlier position can arrive any more.
            self._write(Barrier())

    def sharing(self) -> Sharing:
        """Return how far this engine has followed the log. Does not ask Redis."""
        at = self._replica.at
        applied = 0 if at is None else at.number
        head, fault = self._follower.head, self._follower.fault
        behind = None if head is None or fault is not None else max(0, head - applied)
        return Sharing(connected=behind is not None, applied=applied, behind=behind, durable=self._durable, fault=fault)

    def is_durable(self) -> bool:
        return self._durable

    def state(self) -> str | None:
        damage = self._replica.catalog.state()
        return damage if self._follower.fault is None else self._follower.fault.message

    def structure_check(self) -> StructureCheck | None:
        return self._replica.catalog.structure_check()

    def refuse_writes(self, fault: str) -> None:
        self._replica.catalog.refuse_writes(fault)

    def compact(self) -> int:
        """Make a checkpoint and remove the log's records before it, so that nothing of a deleted window is left."""
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

    def rename_window(self, name: str, new_name: str, now: Micros) -> WindowRow:
        row: WindowRow = self._write(Rename(name, new_name, now))
        return row

    def bind(self, binding: Binding) -> None:
        self._write(Bind(binding))

    def add_proof(self, name: str, proof: Proof) -> None:
        self._write(Prove(name, proof))

    # --- reads ---

    def window(self, name: str) -> WindowRow:
        return self._follower.fresh().window(name)

    def children(self, name: str) -> tuple[str, ...]:
        return self._follower.fresh().children(name)

    def list_windows(self, query: WindowQuery) -> WindowPage:
        return self._follower.fresh().list_windows(query)

    def token_ids_of(self, name: str) -> bytes:
        return self._follower.fresh().token_ids_of(name)

    def proof_of(self, name: str) -> Proof | None:
        return self._follower.fresh().proof_of(name)

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

    def sessions(self, query: SessionQuery) -> SessionPage:
        return self._follower.fresh().sessions(query)

    def sessions_of(self, session_ids: Sequence[str]) -> dict[str, SessionRow]:
        return self._follower.fresh().sessions_of(session_ids)

    def totals(self) -> CatalogTotals:
        return self._follower.fresh().totals()

    # --- look-ups for requests that wait, which never ask Redis: the engine follows the log once a second ---

    def follow_beginnings(self, follow: Callable[[ChunkKey, int], None]) -> None:
        self._replica.catalog.follow_beginnings(follow)

    def is_open(self, key: ChunkKey, windows: OpenWindows) -> bool:
        return self._replica.catalog.is_open(key, windows)

    def open_windows_with(self, key: ChunkKey, windows: OpenWindows, limit: int) -> tuple[str, ...]:
        return self._replica.catalog.open_windows_with(key, windows, limit)

    # --- data of this engine, which is in the replica alone ---

    def chunks_after(self, last: ChunkKey | None, limit: int) -> tuple[ChunkRow, ...]:
        return self._replica.catalog.chunks_after(last, limit)

    def uses_after(self, last: ChunkKey | None, limit: int) -> tuple[tuple[ChunkRow, Micros], ...]:
        return self._replica.catalog.uses_after(last, limit)

    def place(self, tier: TierName, came: Sequence[ChunkKey], went: Sequence[ChunkKey]) -> None:
        self._replica.catalog.place(tier, came, went)

    def note(self, name: str, text: str | None) -> None:
        self._replica.catalog.note(name, text)

    def noted(self, name: str) -> str | None:
        return self._replica.catalog.noted(name)

    def check_integrity(self) -> None:
        self._replica.catalog.check_integrity()

    def close(self) -> None:
        self._end_compaction(_CLOSE_TIMEOUT_S)
        self._log.close()
        self._replica.close()

    # --- internal: writing ---

    def _write(self, change: Change) -> Any:
        """Make the change and return the result of the catalog's method.

        Raises the errors of the method, `Code.BUSY` if other engines are always faster, `Code.BACKEND` if Redis does
        not answer, `OutcomeUnknown` if it is not known whether the change was made.
        """
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
                    self._durable = False
                    raise
                appended = True
        except _Nothing:
            return ()
        except CWMError as problem:
            if not appended or record is None:
                raise
            # The change has been made. The replica applies it from the log once its file can be written to again.
            self._follower.failed(problem)
            self._durable = True
            self._mark_durable(record.at)
            return result
        replica.at = record.at
        self._durable = True
        self._mark_durable(record.at)
        self._follower.report_gone(gone)
        return result

    def _apply_tail(self, view: View) -> tuple[Position, list[Gone]]:
        """Apply within the transaction the records of others that are not known to be on Redis's disk.

        They will be there once our record, which follows them, is.
        """
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

    def _mark_durable(self, at: Position) -> None:
        try:
            self._log.mark_durable(at)
        except CWMError as problem:
            # Other engines find out by themselves after a while.
            self._follower.failed(problem)

    # --- internal: checkpoints ---

    def _compact_if_due(self, view: View) -> None:
        before = 0 if view.checkpoint is None else view.checkpoint.number
        if view.head.number - before < self._limits.log_records and view.bytes < self._limits.log_bytes:
            return
        if self._compaction is None or not self._compaction.is_alive():
            self._compaction = threading.Thread(target=self._make_checkpoint, name="cwm-checkpoint", daemon=True)
            self._compaction.start()

    def _make_checkpoint(self) -> None:
        log = self._open_log()
        try:
            publish(log, self._replica.path, self._limits.part_bytes)
        except (CWMError, OSError) as problem:
            logger.warning("the shared catalog has no new checkpoint, the next write tries again: %s", problem)
        finally:
            log.close()

    def _end_compaction(self, timeout_s: float | None) -> None:
        if self._compaction is not None:
            self._compaction.join(timeout_s)


class _Nothing(Exception):
    """The transaction would change nothing."""
