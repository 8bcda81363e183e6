"""The embedded catalog: one SQLite file in CWM_HOME, which needs no server.

`schema.py` says which invariants the tables have, `file.py` how a transaction becomes durable, and `rows.py` how a
damaged row is detected. A *missing* row is detected because the table and its indexes differ. The engine compares all
tables with their indexes when it opens the catalog, or soon afterwards if the file is large (`check.py`). A reader
compares a table when a query needs it for the first time.

Only the thread that opened a catalog may use it. sqlite3 refuses any other thread, so there is no lock. Every method
may block on the disk. Each method that writes is durable when it returns.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cwm_connector.catalog.base import (
    Binding,
    CatalogTotals,
    ChunkRow,
    DeletedWindow,
    NewWindow,
    OpenWindows,
    Proof,
    WindowPage,
    WindowQuery,
    WindowRow,
)
from cwm_connector.catalog.session_pages import SessionEvent, SessionPage, SessionQuery, SessionRow
from cwm_connector.catalog.sqlite.check import StructureCheck, first_inconsistency, table_damage
from cwm_connector.catalog.sqlite.chunks import (
    chunk_entries,
    chunks_where,
    delete_chunks,
    first_chunk,
    is_open,
    next_id,
    open_beginnings,
    open_windows_with,
    place,
    uses_after,
)
from cwm_connector.catalog.sqlite.chunks import windows_with as names_with
from cwm_connector.catalog.sqlite.file import BUSY_TIMEOUT_S, SqliteFile
from cwm_connector.catalog.sqlite.notes import read_note, write_note
from cwm_connector.catalog.sqlite.query import page_ids
from cwm_connector.catalog.sqlite.snapshots import (
    add_snapshot,
    count_windows,
    read_chunks,
    read_snapshot,
    read_token_ids,
    release_snapshot,
)
from cwm_connector.catalog.sqlite.thaws import (
    add_binding,
    all_bindings,
    forget_unused_sessions,
    last_thaw_into,
    read_proof,
    remember_session,
    session_page,
    sessions_bound_to,
    sessions_of,
    write_proof,
)
from cwm_connector.catalog.sqlite.tokens import TOKEN_BYTES
from cwm_connector.catalog.sqlite.totals import counting, read_totals
from cwm_connector.catalog.sqlite.windows import (
    Tagged,
    Window,
    add_window,
    change_window,
    children_of,
    contract_row,
    delete_window,
    find_window,
    list_window,
    read_window,
    read_window_named,
    refuse_taken_name,
    rename_window,
    snapshot_of,
)
from cwm_connector.catalog.trash.sqlite import SqliteTrash, rename_parent
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros, TierName


class SqliteCatalog:
    """`Catalog` in one SQLite file. The engine opens it with `open`, a client with `open_read_only`."""

    def __init__(self, file: SqliteFile, *, read_only: bool) -> None:
        self._file = file
        self._read_only = read_only
        self._compared: set[str] = set()
        """The tables that a reader has compared with their indexes and found undamaged."""
        self._follow_beginning: Callable[[ChunkKey, int], None] = lambda key, tokens: None
        self.trash = SqliteTrash(
            self._writing, self._reading, self._found, lambda *first: self._follow_beginning(*first)
        )

    @classmethod
    def open(cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S, home_id: str = "") -> "SqliteCatalog":
        """Open the catalog for reading and writing. The folder must exist. See `SqliteFile.open`."""
        return cls(SqliteFile.open(path, busy_timeout_s, home_id), read_only=False)

    @classmethod
    def open_read_only(cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "SqliteCatalog":
        """Open the catalog for reading. See `SqliteFile.open_read_only`. Writing raises `Code.NOT_ALLOWED`."""
        return cls(SqliteFile.open_read_only(path, busy_timeout_s), read_only=True)

    # --- windows ---

    def commit_window(self, new: NewWindow) -> WindowRow:
        with self._writing() as db:
            refuse_taken_name(db, new.name)
            snapshot, size_bytes = add_snapshot(db, new)
            window = Window(
                id=next_id(db, "windows"),
                name=new.name,
                snapshot_id=snapshot.id,
                description=new.description,
                session_id=new.session_id,
                head=new.head,
                parent=new.parent,
                cloned=0,
                model=new.model,
                token_count=len(new.token_ids) // TOKEN_BYTES,
                size_bytes=size_bytes,
                created_at=new.created_at,
                updated_at=new.created_at,
                thawed_at=None,
                private=int(new.private),
            )
            add_window(db, window, new.tags)
            if new.proof is not None:
                write_proof(db, snapshot.id, new.proof)
            if not new.private and new.chunks:
                self._follow_beginning(*first_chunk(db, snapshot.id))
            count_windows(db, snapshot.id, 1)
            remember_session(db, new.session_id, window, SessionEvent.FROZEN, new.created_at)
            return contract_row(db, read_window(db, window.id))

    def clone_window(
        self, source: str, target: str, description: str | None, tags: Sequence[str] | None, now: Micros
    ) -> WindowRow:
        with self._writing() as db:
            original = self._found(db, source)
            refuse_taken_name(db, target)
            window = replace(
                original.window,
                id=next_id(db, "windows"),
                name=target,
                description=original.window.description if description is None else description,
                parent=source,
                cloned=1,
                created_at=now,
                updated_at=now,
                thawed_at=None,
            )
            add_window(db, window, original.tags if tags is None else tags)
            count_windows(db, window.snapshot_id, 1)
            return contract_row(db, read_window(db, window.id))

    def delete_window(self, name: str, keep: Iterable[ChunkKey] = ()) -> DeletedWindow:
        """Delete the window, also if it is damaged but its chunks are known. Raises `Code.CORRUPT` otherwise."""
        with self._writing() as db:
            window = self._find(db, name)
            snapshot_id = snapshot_of(db, window, name)
            sessions = sessions_bound_to(db, window)
            delete_window(db, window)
            forget_unused_sessions(db, sessions)
            return release_snapshot(db, snapshot_id, name, keep)

    def tag_window(
        self, name: str, add: Sequence[str], remove: Sequence[str], description: str | None, now: Micros
    ) -> WindowRow:
        """Change tags and description. Raises `Code.ARGUMENT` if the window would have too many tags."""
        with self._writing() as db:
            before = self._found(db, name)
            text = before.window.description if description is None else description
            window = replace(before.window, description=text, updated_at=now)
            tags = (*(tag for tag in before.tags if tag not in remove), *add)
            change_window(db, before, replace(before, window=window, tags=tags))
            return contract_row(db, read_window(db, window.id))

    def rename_window(self, name: str, new_name: str, now: Micros) -> WindowRow:
        with self._writing() as db:
            renamed = rename_window(db, self._found(db, name), new_name, now)
            rename_parent(db, name, new_name)
            return contract_row(db, renamed)

    def window(self, name: str) -> WindowRow:
        with self._reading() as db:
            return contract_row(db, self._found(db, name))

    def children(self, name: str) -> tuple[str, ...]:
        with self._reading("windows") as db:
            return children_of(db, name)

    def list_windows(self, query: WindowQuery) -> WindowPage:
        with self._reading("windows", "window_tags", "window_texts") as db:
            ids, total = page_ids(db, query)
            return WindowPage(tuple(list_window(db, window) for window in ids), total)

    # --- the content of windows ---

    def token_ids_of(self, name: str) -> bytes:
        with self._reading() as db:
            window = self._found(db, name).window
            return read_token_ids(db, read_snapshot(db, window.snapshot_id, name), name)

    def chunks_of(self, name: str) -> tuple[ChunkRow, ...]:
        with self._reading() as db:
            window = self._found(db, name).window
            chunks = read_chunks(db, read_snapshot(db, window.snapshot_id, name), name)
            return tuple(entry.chunk for entry in chunks)

    def sweep_unreferenced(self, keep: Iterable[ChunkKey] = ()) -> tuple[ChunkRow, ...]:
        kept = frozenset(keep)
        with self._writing() as db:
            swept = tuple(row for row in chunks_where(db, "WHERE refs = 0 ORDER BY id") if row.key not in kept)
            delete_chunks(db, [row.key for row in swept])
            return swept

    def stored(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, ChunkRow]:
        with self._reading("chunks") as db:
            return {key: entry.chunk for key, entry in chunk_entries(db, keys).items()}

    def all_chunks(self) -> tuple[ChunkRow, ...]:
        with self._reading("chunks") as db:
            return chunks_where(db, "ORDER BY id")

    def chunks_after(self, last: ChunkKey | None, limit: int) -> tuple[ChunkRow, ...]:
        with self._reading("chunks") as db:
            return chunks_where(db, "WHERE key > ? ORDER BY key LIMIT ?", (last or b"", limit))

    def uses_after(self, last: ChunkKey | None, limit: int) -> tuple[tuple[ChunkRow, Micros], ...]:
        with self._reading("windows", "snapshot_chunks", "chunks") as db:
            return uses_after(db, last, limit)

    def windows_with(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, tuple[str, ...]]:
        """Return the names of the windows for each of `keys`, an empty tuple for a key that no window holds."""
        with self._reading("windows", "snapshot_chunks", "chunks") as db:
            return {key: names_with(db, key) for key in keys}

    def follow_beginnings(self, follow: Callable[[ChunkKey, int], None]) -> None:
        with self._reading() as db:
            for key, tokens in open_beginnings(db):
                follow(key, tokens)
        self._follow_beginning = follow

    def repeat_beginnings(self) -> None:
        """Call what follows the beginnings with all of them again, because the file has another content now."""
        self.follow_beginnings(self._follow_beginning)

    def is_open(self, key: ChunkKey, windows: OpenWindows) -> bool:
        with self._reading() as db:
            return is_open(db, key, windows)

    def open_windows_with(self, key: ChunkKey, windows: OpenWindows, limit: int) -> tuple[str, ...]:
        with self._reading() as db:
            return open_windows_with(db, key, windows, limit)

    def place(self, tier: TierName, came: Sequence[ChunkKey], went: Sequence[ChunkKey]) -> None:
        """Record the changes of a tier. A key in both lists counts as gone."""
        with self._writing() as db:
            place(db, tier, came, went)

    # --- proofs, thaws and sessions ---

    def add_proof(self, name: str, proof: Proof) -> None:
        with self._writing() as db:
            write_proof(db, self._found(db, name).window.snapshot_id, proof)

    def proof_of(self, name: str) -> Proof | None:
        with self._reading("proofs") as db:
            return read_proof(db, self._found(db, name).window.snapshot_id, name)

    def bind(self, binding: Binding) -> None:
        with self._writing() as db:
            before = self._found(db, binding.window_name)
            window = replace(before.window, thawed_at=binding.created_at)
            add_binding(db, window.id, binding)
            change_window(db, before, replace(before, window=window))
            remember_session(db, binding.session_id, window, SessionEvent.THAWED, binding.created_at)

    def bindings(self) -> tuple[Binding, ...]:
        with self._reading("windows", "bindings") as db:
            return all_bindings(db)

    def last_thaw_into(self, session_id: str) -> Binding | None:
        with self._reading("windows", "bindings") as db:
            return last_thaw_into(db, session_id)

    def session(self, session_id: str) -> SessionRow | None:
        with self._reading("windows", "sessions") as db:
            return sessions_of(db, [session_id]).get(session_id)

    def sessions(self, query: SessionQuery) -> SessionPage:
        with self._reading("windows", "sessions") as db:
            return session_page(db, query)

    def sessions_of(self, session_ids: Sequence[str]) -> dict[str, SessionRow]:
        with self._reading("windows", "sessions") as db:
            return sessions_of(db, session_ids)

    # --- the catalog itself ---

    def note(self, name: str, text: str | None) -> None:
        with self._writing() as db:
            write_note(db, name, text)

    def noted(self, name: str) -> str | None:
        with self._reading("notes") as db:
            return read_note(db, name)

    def totals(self) -> CatalogTotals:
        with self._reading() as db:
            return read_totals(db)

    def is_durable(self) -> bool:
        return True

    def state(self) -> str | None:
        fault = self._file.fault
        return None if fault is None else f"its file is damaged ({fault}); stop the engine and restore it from a backup"

    def structure_check(self) -> StructureCheck | None:
        return self._file.unchecked

    def refuse_writes(self, fault: str) -> None:
        self._file.fault = fault
        raise self._inconsistent(fault)

    def compact(self) -> int:
        return self._file.compact()

    def check_integrity(self) -> None:
        with self._file.reading() as db:
            fault = first_inconsistency(db)
        if fault is not None:
            raise self._inconsistent(fault)

    def close(self) -> None:
        self._file.close()

    # --- internal ---

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._file.writing() as db, counting(db):
            yield db

    @contextmanager
    def _reading(self, *tables: str) -> Iterator[sqlite3.Connection]:
        """Open a read transaction. `tables` are those whose missing rows would change the answer."""
        with self._file.reading() as db:
            self._compare(db, tables)
            yield db

    def _compare(self, db: sqlite3.Connection, tables: Iterable[str]) -> None:
        if not self._read_only:
            return
        for table in tables:
            if table not in self._compared:
                fault = table_damage(db, table)
                if fault is not None:
                    raise self._inconsistent(fault)
                self._compared.add(table)

    def _found(self, db: sqlite3.Connection, name: str) -> Tagged:
        """Return the window's record. Raises `Code.WINDOW_NOT_FOUND`, or `Code.CORRUPT` if it is damaged."""
        return read_window_named(db, self._find(db, name), name)

    def _find(self, db: sqlite3.Connection, name: str) -> int:
        """Return the window's id. Raises `Code.WINDOW_NOT_FOUND`."""
        window = find_window(db, name)
        if window is not None:
            return window
        self._compare(db, ("windows",))
        raise CWMError(Code.WINDOW_NOT_FOUND, f"no window named {name!r}; window_list shows what there is", window=name)

    def _inconsistent(self, fault: str) -> CWMError:
        return CWMError(
            Code.CORRUPT,
            f"the catalog {self._file.path} is inconsistent: {fault}; restore it from a backup",
            fault=fault,
        )
