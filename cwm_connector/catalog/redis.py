"""The shared catalog: several engines, one log in Redis, and in each engine a SQLite replica that answers every read.

    write:  catch up -> run it in an open SQLite transaction -> append to the log if nobody else has meanwhile -> on
            Redis's disk -> commit the replica with its new position -> acknowledged
    read:   catch up if Redis answers at once -> ask the replica

Names, references and limits are checked against the log's head itself, because the append succeeds only there. Where
Redis is away, reads go on from the replica and say so (`state`), and writes fail with CWM-5002.

A transaction that somebody else's process is still making durable is not applied before it is: with `appendfsync
always` that is at once, with `everysec` a second later, or, should that process have died, by this one.

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
from cwm_connector.catalog.checkpoint import PART_BYTES, publish
from cwm_connector.catalog.log import (
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
from cwm_connector.catalog.redis_append import Moved, append
from cwm_connector.catalog.redis_log import RedisLog, Trimmed, View, damaged
from cwm_connector.catalog.redis_replica import Gone, Replica
from cwm_connector.catalog.sqlite import SqliteCatalog
from cwm_connector.protocol import Code, CWMError
from cwm_connector.redis_link import RedisLink
from cwm_connector.terms import ChunkKey, Micros, TierName

logger = logging.getLogger(__name__)
_FAREWELL_S: Final = 5.0
"""What a checkpoint under way gets at the end; one that is cut off does no harm."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take and how much may gather."""

    connect_s: float = 1.0
    call_s: float = 3.0
    read_s: float = 0.5
    """For a read: longer without an answer, and it is served as the replica is."""
    pause_s: float = 5.0
    """How long reads leave Redis alone after it failed."""
    write_s: float = 5.0
    """For a write that others keep overtaking, and again to find out what became of one whose reply was lost."""
    patience_s: float = 3.0
    """How long another engine may take to make its record durable before this one does it."""
    log_records: int = 2000
    log_bytes: int = 256 << 20
    """More records, or more bytes of them, since the last checkpoint, and it is time for the next."""
    part_bytes: int = PART_BYTES


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

    def __init__(self, url: str, namespace: str, replica: Replica, on_gone: Callable[[Gone], None], limits: Limits):
        self._url = url
        self._namespace = namespace
        self._replica = replica
        self._on_gone = on_gone
        self._limits = limits
        self._log = self._open_log()
        self._head: int | None = None
        self._fault: CWMError | None = None
        self._paused_until = 0.0
        self._settled = False
        self._tail: tuple[int, float] | None = None
        """Up to where the log was settled when a record beyond was first seen, and when that was."""
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
        limits: Limits = Limits(),
    ) -> "RedisCatalog":
        """Opens the replica and catches up; with Redis away it starts as the replica is, and tries again later.

        `on_gone` is told, on this thread, what others deleted; `store`: see `SqliteFile.open`.
        Raises: as `SqliteFile.open`; CWM-1003 for a Redis that can't keep a catalog, or a replica with windows that are
        not shared; CWM-4004 if Redis holds another history than the replica, or a damaged one.
        """
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
            self._follow()
        else:
            # Once a record of ours is in the log, whatever was sent for an earlier place can't arrive any more.
            self._write(Barrier())

    def sharing(self) -> Sharing:
        """As of the last contact; asks nobody."""
        at = self._replica.at
        applied = 0 if at is None else at.number
        connected = self._fault is None and self._head is not None
        behind = max(0, self._head - applied) if connected and self._head is not None else None
        return Sharing(connected, applied, behind, self._settled, self._fault)

    def settled(self) -> bool:
        return self._settled

    def state(self) -> str | None:
        return None if self._fault is None else self._fault.message

    def compact(self) -> int:
        """Makes a checkpoint and drops the log's records up to it: nothing of a deleted window is left in them."""
        self._end_compaction(None)
        self._follow()
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
        return self._fresh().window(name)

    def children(self, name: str) -> tuple[str, ...]:
        return self._fresh().children(name)

    def list_windows(self, query: WindowQuery) -> WindowPage:
        return self._fresh().list_windows(query)

    def token_ids_of(self, name: str) -> bytes:
        return self._fresh().token_ids_of(name)

    def chunks_of(self, name: str) -> tuple[ChunkRow, ...]:
        return self._fresh().chunks_of(name)

    def stored(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, ChunkRow]:
        return self._fresh().stored(keys)

    def all_chunks(self) -> tuple[ChunkRow, ...]:
        return self._fresh().all_chunks()

    def windows_with(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, tuple[str, ...]]:
        return self._fresh().windows_with(keys)

    def bindings(self) -> tuple[Binding, ...]:
        return self._fresh().bindings()

    def last_thaw_into(self, session_id: str) -> Binding | None:
        return self._fresh().last_thaw_into(session_id)

    def session(self, session_id: str) -> SessionRow | None:
        return self._fresh().session(session_id)

    def sessions(self) -> tuple[SessionRow, ...]:
        return self._fresh().sessions()

    def totals(self) -> CatalogTotals:
        return self._fresh().totals()

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
            view = self._follow()
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
                self._failed(problem)
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
            self._failed(problem)
            self._settled = True
            self._tell_settled(record.at)
            return result
        replica.at = record.at
        self._settled = True
        self._tell_settled(record.at)
        self._tell_gone(gone)
        return result

    def _apply_tail(self, view: View) -> tuple[Position, list[Gone]]:
        """Inside the transaction: what others appended and nobody knows to be on disk; with our record behind it, it
        will be."""
        base = self._base(view)
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
            self._failed(problem)

    # --- inside: following ---

    def _fresh(self) -> SqliteCatalog:
        """The replica, caught up if that takes no longer than a moment."""
        if time.monotonic() >= self._paused_until:
            try:
                self._follow(hurried=True)
            except CWMError as problem:
                logger.debug("a read is served as the replica is: %s", problem)
        return self._replica.catalog

    def _follow(self, *, hurried: bool = False) -> View:
        """Applies what is durable in the log. `hurried`: waits for nothing, and leaves the rest for another time."""
        try:
            view = self._apply_new(hurried)
        except CWMError as problem:
            self._failed(problem)
            raise
        self._fault, self._paused_until = None, 0.0
        return view

    def _failed(self, problem: CWMError) -> None:
        self._fault, self._paused_until = problem, time.monotonic() + self._limits.pause_s

    def _apply_new(self, hurried: bool) -> View:
        deadline = time.monotonic() + self._limits.read_s
        empty = 0
        while True:
            view = self._look(hurried)
            base = self._base(view)
            upto = self._lasting(view, base, hurried)
            if upto <= base.number or (hurried and time.monotonic() > deadline):
                return view
            try:
                records = self._log.read(base)
            except Trimmed:
                records = []
            records = [record for record in records if record.at.number <= upto]
            if records:
                gone = self._replica.absorb(records)
            elif view.checkpoint is not None and view.checkpoint.number > base.number:
                if hurried:
                    return view
                gone = self._replica.load(self._log, view.checkpoint)
            elif empty:
                raise damaged(f"record {base.number + 1} is missing")
            else:
                # Trimmed since the look: the next one shows the checkpoint.
                empty += 1
                continue
            self._tell_gone(gone)

    def _look(self, hurried: bool) -> View:
        """Raises: CWM-4004 if what is there is not the replica's history."""
        timeout_s = self._limits.read_s if hurried else None
        view = self._log.look(timeout_s)
        if view is None and self._replica.at is None:
            self._log.create()
            view = self._log.look(timeout_s)
            if view is None:
                raise damaged("its facts are missing")
        self._head = None if view is None else view.head.number
        at = self._replica.at
        if view is None or (at is not None and not _may_continue(at, view.head)):
            raise self._other_history()
        return view

    def _other_history(self) -> CWMError:
        return CWMError(
            Code.CORRUPT,
            "Redis holds another history of the shared catalog than this engine has seen: an older copy, or none; "
            "restore the newest copy of Redis, or, to go on with what Redis has, move the replica away and restart",
            replica=str(self._replica.path),
        )

    def _base(self, view: View) -> Position:
        return self._replica.at or Position(view.head.log, 0, view.head.log)

    def _lasting(self, view: View, base: Position, hurried: bool) -> int:
        """Up to where records are known to be on Redis's disk; found out here if their writer does not say so."""
        settled = max(view.settled, base.number)
        if view.head.number <= settled:
            self._tail = None
            return settled
        if not self._log.settles_at_once:
            if self._tail is None or self._tail[0] != settled:
                self._tail = (settled, time.monotonic())
            if hurried or time.monotonic() < self._tail[1] + self._limits.patience_s:
                return settled
        self._log.settle()
        self._log.tell_settled(view.head)
        return view.head.number

    def _tell_gone(self, gone: Iterable[Gone]) -> None:
        for each in gone:
            self._on_gone(each)

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


def _may_continue(at: Position, head: Position) -> bool:
    """False if the log that has this head can't have been at `at`."""
    return head.log == at.log and (head.number > at.number or head == at)
