"""One SQLite file as the catalog uses it: opened safely, durable, with the contract's errors instead of sqlite3's.

The journal is a write-ahead log with `synchronous=FULL`: a transaction is on the disk when `writing` ends, and readers
in other processes see whole transactions only, without ever holding the writer up.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from cwm_connector.catalog.sqlite.check import definitions, structural_damage
from cwm_connector.catalog.sqlite.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION
from cwm_connector.core.errors import Code, CWMError

BUSY_TIMEOUT_S = 5.0
"""How long to wait for another process's lock before CWM-7003."""

_CACHE_KIB = 16 << 10
_WAL_LIMIT_BYTES = 64 << 20
"""The log's file is cut to this size once its content has moved into the main file."""

_SHORTEST_BYTES = 512
"""SQLite's smallest page."""
_IN_MEMORY = ":memory:"

_DAMAGED = "it is damaged; restore it from a copy, or move it away and start anew"

_MEANINGS: dict[int, tuple[Code, str]] = {
    sqlite3.SQLITE_FULL: (Code.QUOTA, "the disk is full; free some space and call again"),
    sqlite3.SQLITE_IOERR: (Code.WRITE_FAILED, "the disk reported an error; check the disk and call again"),
    sqlite3.SQLITE_IOERR_READ: (Code.READ_FAILED, "it can't be read; check the disk and call again"),
    sqlite3.SQLITE_CANTOPEN: (Code.READ_FAILED, "it can't be opened; check that its folder exists and may be written"),
    sqlite3.SQLITE_READONLY: (
        Code.NOT_ALLOWED,
        "it may only be read here; only the engine changes it, and needs a folder that it may write",
    ),
    sqlite3.SQLITE_PERM: (Code.NOT_ALLOWED, "this user may not use it; check the file's owner and mode"),
    sqlite3.SQLITE_BUSY: (Code.BUSY, "another process holds its lock; call again"),
    sqlite3.SQLITE_LOCKED: (Code.BUSY, "another process holds its lock; call again"),
    sqlite3.SQLITE_NOMEM: (Code.MEMORY, "there is no memory left for it; free some and call again"),
    sqlite3.SQLITE_CORRUPT: (Code.CORRUPT, _DAMAGED),
    sqlite3.SQLITE_NOTADB: (
        Code.CORRUPT,
        "it is not a database; restore it from a copy, or move it away and start anew",
    ),
}


_PAST_ITS_DEFINITIONS = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)
"""What SQLite says of a statement that the file's definitions don't fit, or that it can't read at all."""


@contextmanager
def translated(path: str, *, checked: bool = True) -> Iterator[None]:
    """The one place where sqlite3's exceptions become the contract's. `path` is what the message names.

    `checked`: the file's definitions are known to be ours; until then a statement that fails tells of damage, no bug.
    """
    try:
        yield
    except sqlite3.Error as problem:
        extended = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        # An extended code keeps its primary code in the low byte.
        known = _MEANINGS.get(extended) or _MEANINGS.get(extended & 0xFF)
        if known is None and not checked and extended & 0xFF in _PAST_ITS_DEFINITIONS:
            known = Code.CORRUPT, _DAMAGED
        if known is None:
            raise CWMError(Code.INTERNAL, f"the catalog {path} failed ({problem}); report this as a bug") from problem
        raise CWMError(known[0], f"the catalog {path} failed: {known[1]}", reason=str(problem)) from problem
    except OSError as problem:
        raise CWMError(
            Code.READ_FAILED,
            f"the catalog {path} can't be reached ({problem.strerror}); check its folder's owner and mode",
        ) from None
    except UnicodeDecodeError as problem:
        # sqlite3's own: what SQLite complains of is quoted from damaged definitions.
        raise CWMError(Code.CORRUPT, f"the catalog {path} failed: {_DAMAGED}", reason=str(problem)) from problem
    except (UnicodeEncodeError, OverflowError) as problem:
        # A lone surrogate or an integer over 64 bits: the value came with the call, and nothing was written.
        raise CWMError(
            Code.ARGUMENT, f"the catalog can't hold a value ({problem}); correct it and call again"
        ) from None


class SqliteFile:
    """A connection with transactions. It may be used by the thread that opened it only; sqlite3 enforces that."""

    def __init__(self, connection: sqlite3.Connection, path: str, inode: int | None = None) -> None:
        """`inode`: the file's own; a write is refused when another, or none, stands at the path."""
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._connection = connection
        self.path = path
        self._inode = inode

    @classmethod
    def open(cls, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S, store: str = "") -> "SqliteFile":
        """For the engine: creates the file (mode 0600) where there is none, checks it, brings its schema up to date.

        The check reads the whole file: a third of a second for 10,000 windows. `store`: the id of the store that the
        catalog has to be of; one that has not been told yet remembers it.
        Raises: CWM-4001 if it can't be created; CWM-4004 if it is no catalog, is damaged, comes from a newer version or
        belongs to another store.
        """
        try:
            _make_private(path)
        except OSError as problem:
            raise CWMError(
                Code.WRITE_FAILED,
                f"the catalog {path} can't be made ({problem.strerror}); set CWM_HOME to another folder",
            ) from None
        with translated(str(path), checked=False):
            _refuse_a_stump(path)
            connection = _connect(str(path), busy_timeout_s)
            try:
                _require_sound(connection, path, _version(connection, path))
                _use_write_ahead_log(connection, path)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                # What was deleted is overwritten, whatever the library's default: token ids are somebody's text.
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
                file = cls(connection, str(path), _inode(path))
                with file.writing():  # another store's catalog is left as it was
                    _migrate(file)
                    _belong(file, store)
                return file
            except BaseException:
                connection.close()
                raise

    @classmethod
    def open_read_only(cls, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "SqliteFile":
        """For clients, whether an engine writes at the moment, has stopped or was killed.

        A file that is absent, or that the engine has not filled yet, reads as an empty catalog, and stays empty until
        it is opened anew. The folder must be writable for this user: SQLite keeps the log's index beside the file.

        Raises: CWM-4004 as `open`, but that only the definitions are checked here; CWM-3001 if its schema is an older
        one; CWM-4002 if it can't be read.
        """
        with translated(str(path), checked=False):
            _refuse_a_stump(path)
            connection = _connect(
                f"{path.absolute().as_uri()}?mode=ro" if path.exists() else _IN_MEMORY, busy_timeout_s
            )
            try:
                version = _version(connection, path)
                if version == 0:
                    connection.close()
                    connection = _connect(_IN_MEMORY, busy_timeout_s)
                    _migrate(cls(connection, str(path)))
                elif version < SCHEMA_VERSION:
                    raise CWMError(
                        Code.STATE,
                        f"the catalog {path} was made by an older version; start the engine once, which brings it up "
                        "to date",
                        found=version,
                        known=SCHEMA_VERSION,
                    )
                else:
                    _require_our_definitions(connection, path)
                connection.execute("PRAGMA query_only = ON")
                return cls(connection, str(path))
            except BaseException:
                connection.close()
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: all statements see the same state of the catalog. Inside another one, a part of it."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def reading_with_tables_of_its_own(self) -> Iterator[sqlite3.Connection]:
        """The same, for a connection that may only read, and may make temporary tables here all the same."""
        self._connection.execute("PRAGMA query_only = OFF")
        try:
            with self.reading() as connection:
                yield connection
        finally:
            self._connection.execute("PRAGMA query_only = ON")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: durable when the block ends, undone by any exception in it. Inside another one it is a
        part of that: durable or undone with it.

        Raises: CWM-4001 if the file is no longer at its path, where nobody would ever find what is written to it.
        """
        self._require_in_place()
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def compact(self) -> int:
        """Writes the file anew without the pages that nothing uses; returns the bytes that went."""
        self._require_in_place()
        with translated(self.path):
            before = self._size()
            (unused,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if unused:
                self._connection.execute("VACUUM")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return before - self._size()

    def _size(self) -> int:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int(pages * page_bytes)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with translated(self.path):
            if self._connection.in_transaction:
                # A step of the caller's own transaction, which alone ends it.
                yield self._connection
                return
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors, a full disk among them.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def take_over(self, path: Path) -> None:
        """Becomes what another catalog's file holds, in one transaction: readers see all of the one or of the other."""
        self._require_in_place()
        with translated(self.path), closing(_connect(str(path), 0)) as source:
            source.backup(self._connection)

    def _require_in_place(self) -> None:
        if self._inode is not None and _inode(Path(self.path)) != self._inode:
            raise CWMError(
                Code.WRITE_FAILED,
                f"the catalog {self.path} was removed or replaced while in use; put it back, or restart the engine",
            )

    def close(self) -> None:
        self._connection.close()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _connect(database: str, busy_timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        database, timeout=busy_timeout_s, isolation_level=None, uri=database.startswith("file:"), cached_statements=256
    )
    # Text that damage made no UTF-8 has to reach the comparison with its row's checksum.
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    return connection


def _make_private(path: Path) -> None:
    """Makes the file if there is none, for its owner alone; SQLite gives the log's files the same mode."""
    # Never by opening an existing file: closing any descriptor of it would drop this process's SQLite locks.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if path.is_file():
            path.chmod(0o600)


def _refuse_a_stump(path: Path) -> None:
    """Raises: CWM-4004 for a file too short to be one, which SQLite takes for an empty one all the same."""
    if path.is_file() and 0 < path.stat().st_size < _SHORTEST_BYTES:
        raise _damaged(path, "it was cut short")


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise CWMError(
            Code.WRITE_FAILED,
            f"the catalog {path} lies on a file system without shared memory files; set CWM_HOME to a local disk",
        )


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The file's schema version, 0 if it is empty.

    Raises: CWM-4004 if it is another program's, newer than this one knows, or has tables and no version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (owner or version or tables):
        raise CWMError(
            Code.CORRUPT, f"{path} is another program's database; move it away or set CWM_HOME to another folder"
        )
    if version == 0 and owner == APPLICATION_ID:
        raise _damaged(path, "it has no version")
    if version > SCHEMA_VERSION:
        raise CWMError(
            Code.CORRUPT,
            f"the catalog {path} has schema {version} and this version knows {SCHEMA_VERSION}; "
            "update Context Window Manager or set CWM_HOME to another folder",
            found=version,
            known=SCHEMA_VERSION,
        )
    return int(version)


def _require_sound(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Raises: CWM-4004 if the file's structure is damaged."""
    if version == SCHEMA_VERSION:
        _require_our_definitions(connection, path)
    fault = structural_damage(connection)
    if fault is not None:
        raise _damaged(path, fault)


def _require_our_definitions(connection: sqlite3.Connection, path: Path) -> None:
    """Raises: CWM-4004 if a table, an index or a trigger is not as the file's maker defined it."""
    about = connection.execute("SELECT definitions FROM about").fetchone()
    if about is None or about[0] != definitions(connection):
        raise _damaged(path, "its tables are not defined as they were made")


def _damaged(path: Path, fault: str) -> CWMError:
    return CWMError(Code.CORRUPT, f"the catalog {path} failed: {_DAMAGED}", reason=fault)


def _migrate(file: SqliteFile) -> None:
    with file.writing() as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        for step in MIGRATIONS[version:]:
            step(db)
        if version != SCHEMA_VERSION:
            db.execute("UPDATE about SET definitions = ?", (definitions(db),))
        # Written in any case, and synced: a killed engine's last transaction may not be durable, and what a start does
        # about it (a deletion's bytes) would outlast it.
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _belong(file: SqliteFile, store: str) -> None:
    """Raises: CWM-4004 if the catalog is another store's."""
    if not store:
        return
    with file.writing() as db:
        (owner,) = db.execute("SELECT store FROM about").fetchone()
        if not owner:
            db.execute("UPDATE about SET store = ?", (store,))
        elif store != owner:
            raise CWMError(
                Code.CORRUPT,
                f"the catalog {file.path} belongs to another CWM_HOME; put this one's own back in its place",
            )
