"""The SQLite file of the catalog: open it safely, run durable transactions, translate sqlite3's errors.

The journal is a write-ahead log with `synchronous=FULL`. A transaction is on the disk when `writing` ends. Readers in
other processes see whole transactions only, and never make the writer wait.

Only the thread that opened a file may use it. Every method may block on the disk, and on another process's lock for up
to `BUSY_TIMEOUT_S`.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from cwm_connector.catalog.sqlite.check import (
    LIMIT_S,
    StructureCheck,
    Unfinished,
    definitions,
    structural_damage,
)
from cwm_connector.catalog.sqlite.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.units import MIB

BUSY_TIMEOUT_S = 5.0
"""Seconds to wait for another process's lock before `Code.BUSY`."""
_CACHE_KIB = 16 << 10
"""KiB of pages that SQLite keeps in memory."""
_WAL_LIMIT_BYTES = 64 * MIB
"""The write-ahead log is cut to this size once its content is in the main file."""
_SHORTEST_BYTES = 512
"""SQLite's smallest page."""
_IN_MEMORY = ":memory:"

_DAMAGED = "it is damaged; restore it from a backup, or move it away and start with an empty one"

_MEANINGS: dict[int, tuple[Code, str]] = {
    sqlite3.SQLITE_FULL: (Code.QUOTA, "the disk is full; free some space and call again"),
    sqlite3.SQLITE_IOERR: (Code.WRITE_FAILED, "the disk reported an error; check the disk and call again"),
    sqlite3.SQLITE_IOERR_READ: (Code.READ_FAILED, "it can't be read; check the disk and call again"),
    sqlite3.SQLITE_CANTOPEN: (Code.READ_FAILED, "it can't be opened; check that its folder exists and may be written"),
    sqlite3.SQLITE_READONLY: (
        Code.NOT_ALLOWED,
        "it is read-only here; only the engine may change it, and its folder must be writable",
    ),
    sqlite3.SQLITE_PERM: (Code.NOT_ALLOWED, "this user may not use it; check the file's owner and mode"),
    sqlite3.SQLITE_BUSY: (Code.BUSY, "another process holds its lock; call again"),
    sqlite3.SQLITE_LOCKED: (Code.BUSY, "another process holds its lock; call again"),
    sqlite3.SQLITE_NOMEM: (Code.MEMORY, "there is not enough memory; free some and call again"),
    sqlite3.SQLITE_CORRUPT: (Code.CORRUPT, _DAMAGED),
    sqlite3.SQLITE_NOTADB: (
        Code.CORRUPT,
        "it is not a database; restore it from a backup, or move it away and start with an empty one",
    ),
}


_PAST_ITS_DEFINITIONS = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)
"""SQLite's errors for a statement that does not fit the file's definitions, or that it can't parse."""


@contextmanager
def translated(path: str, *, checked: bool = True) -> Iterator[None]:
    """Translate sqlite3's exceptions into the contract's errors. The message names `path`.

    `checked` says that the file's definitions are known to be ours. Before that check, a failed statement is a sign of
    damage and not of a bug.
    """
    try:
        yield
    except sqlite3.Error as problem:
        extended = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        # The low byte of an extended code is its primary code.
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
        # Raised by sqlite3 itself, when SQLite's message quotes damaged definitions.
        raise CWMError(Code.CORRUPT, f"the catalog {path} failed: {_DAMAGED}", reason=str(problem)) from problem
    except (UnicodeEncodeError, OverflowError) as problem:
        # A lone surrogate or an integer over 64 bits. It came with the call, and nothing was written.
        raise CWMError(
            Code.ARGUMENT, f"the catalog can't store a value ({problem}); correct it and call again"
        ) from None


class SqliteFile:
    """A connection with transactions. sqlite3 refuses any thread but the one that opened it."""

    def __init__(self, connection: sqlite3.Connection, path: str, inode: int | None = None) -> None:
        """Take an open connection. If `inode` is given, writes fail once the file at `path` has another inode."""
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._connection = connection
        self.path = path
        self._inode = inode
        self.unchecked: StructureCheck | None = None
        """The part of the check that was left when the file was opened."""
        self.fault: str | None = None
        """Why the file is not written to any more: damage that was found after the start."""

    @classmethod
    def open(
        cls, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S, home_id: str = "", check_s: float = LIMIT_S
    ) -> "SqliteFile":
        """Open the file for the engine. Create it with mode 0600 if it is missing, check it and update its schema.

        If the check of the structure takes longer than `check_s`, `unchecked` is left to do. A file of an older schema
        is checked completely. `home_id` is the id of the CWM_HOME that the catalog must belong to. A catalog that has
        no id yet takes this one.
        Raises `Code.WRITE_FAILED` if the file can't be created, `Code.CORRUPT` if it is not a catalog, is damaged,
        comes from a newer version or belongs to another CWM_HOME.
        """
        try:
            _make_private(path)
        except OSError as problem:
            raise CWMError(
                Code.WRITE_FAILED,
                f"the catalog {path} can't be created ({problem.strerror}); set CWM_HOME to another folder",
            ) from None
        with translated(str(path), checked=False):
            _refuse_truncated(path)
            connection = _connect(str(path), busy_timeout_s)
            try:
                checked = _require_sound(connection, path, _version(connection, path), check_s)
                _use_write_ahead_log(connection, path)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                # Overwrite what is deleted, whatever the library's default is. Token ids are a user's text.
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
                file = cls(connection, str(path), _inode(path))
                file.unchecked = None if checked else StructureCheck(path)
                with file.writing():  # so that another home's catalog stays unchanged
                    _migrate(file)
                    _require_home(file, home_id)
                return file
            except BaseException:
                connection.close()
                raise

    @classmethod
    def open_read_only(cls, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "SqliteFile":
        """Open the file for a client, whether the engine is writing, has stopped or was killed.

        A file that is missing, or that the engine has not filled yet, reads as an empty catalog. It stays empty until
        it is opened again. This user must be able to write to the folder, because SQLite keeps the index of its log
        there.

        Raises `Code.CORRUPT` as `open` does, but checks only the definitions, `Code.STATE` if the schema is older,
        `Code.READ_FAILED` if the file can't be read.
        """
        with translated(str(path), checked=False):
            _refuse_truncated(path)
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
                        f"the catalog {path} was made by an older version; start the engine once, which updates it",
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
        """Run a read transaction, in which all statements see the same state. It may be part of another transaction."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run a write transaction. It is durable when the block ends, and an exception in the block undoes it.

        Within another transaction it is a part of that one, and becomes durable or is undone with it.
        Raises `Code.WRITE_FAILED` if the file is no longer at its path, where it would be found later, `Code.CORRUPT`
        if it was found damaged.
        """
        if self.fault is not None:
            raise _damaged(Path(self.path), self.fault)
        self._require_in_place()
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def compact(self) -> int:
        """Rewrite the file without unused pages and return the bytes that this freed."""
        self._require_in_place()
        with translated(self.path):
            before = self._size()
            (unused,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if unused:
                self._connection.execute("VACUUM")
            # The log may still have what was deleted.
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
                # A part of the caller's transaction, which ends it.
                yield self._connection
                return
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # After some errors, such as a full disk, SQLite has rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def take_over(self, path: Path) -> None:
        """Replace the content by that of another catalog's file, in one transaction."""
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
        """Close the connection."""
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
    # Text that is no longer valid UTF-8 because of damage still has to reach the check of its row's checksum.
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    return connection


def _make_private(path: Path) -> None:
    """Create the file for its owner alone, if it is missing. SQLite gives the files of its log the same mode."""
    # An existing file must not be opened, because closing any descriptor of it drops this process's SQLite locks.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if path.is_file():
            path.chmod(0o600)


def _refuse_truncated(path: Path) -> None:
    """Raise `Code.CORRUPT` for a file that is too short. SQLite would treat it as an empty one."""
    if path.is_file() and 0 < path.stat().st_size < _SHORTEST_BYTES:
        raise _damaged(path, "it was cut short")


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise CWMError(
            Code.WRITE_FAILED,
            f"the catalog {path} is on a file system without shared memory files; set CWM_HOME to a local disk",
        )


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of the file, 0 if it is empty.

    Raises `Code.CORRUPT` if the file is another program's, newer than this version, or has tables but no version.
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
            f"the catalog {path} has schema {version}, but this version supports up to {SCHEMA_VERSION}; "
            "update Context Window Manager or set CWM_HOME to another folder",
            found=version,
            known=SCHEMA_VERSION,
        )
    return int(version)


def _require_sound(connection: sqlite3.Connection, path: Path, version: int, limit_s: float) -> bool:
    """Raise `Code.CORRUPT` if the structure of the file is damaged. Return False if the check was too long."""
    is_current = version == SCHEMA_VERSION
    if is_current:
        _require_our_definitions(connection, path)
    try:
        fault = structural_damage(connection, limit_s if is_current else None)
    except Unfinished:
        return False
    if fault is not None:
        raise _damaged(path, fault)
    return True


def _require_our_definitions(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `Code.CORRUPT` if a table, an index or a trigger is not defined as it was when the file was made."""
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
        # Written and synced in any case. The last transaction of a killed engine may not be durable yet, but what a
        # start does because of it, such as removing a deletion's bytes, would be.
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _require_home(file: SqliteFile, home_id: str) -> None:
    """Raise `Code.CORRUPT` if the catalog belongs to another home. One that belongs to none gets this home's id."""
    if not home_id:
        return
    with file.writing() as db:
        (owner,) = db.execute("SELECT store FROM about").fetchone()
        if not owner:
            db.execute("UPDATE about SET store = ?", (home_id,))
        elif home_id != owner:
            raise CWMError(
                Code.CORRUPT,
                f"the catalog {file.path} belongs to another CWM_HOME; put back the catalog of this one",
            )
