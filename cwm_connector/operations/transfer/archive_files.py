"""Exported windows as files that a client names: what may be read, and how one comes to be, whole or not at all.

A path is the client's word and a file anybody's: nothing is opened that could block or do something when it is opened
(FIFOs, devices), and no symbolic link is followed at the path's end. A file under the name asked for is complete and
durable: it is written beside it under `.<name>.<8 hex digits>.cwm-partial`, which is all that a kill can leave.

Every call may block on the disk; any thread, one at a time.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from cwm_connector.core import fsync
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.units import MIB
from cwm_connector.operations.transfer.archive import ArchiveHeader, ArchiveReader, ArchiveWriter

PARTIAL: Final = ".cwm-partial"
_MAX_NAME: Final = 200
"""Bytes of the target's name that the temporary one repeats."""
_SYNC_EVERY_BYTES: Final = 256 * MIB
"""So that the last sync is short, and the page cache of the machine stays what it was."""


def checked_path(text: str) -> Path:
    """Raises: CWM-1003 for what can't be a file's path here."""
    path = Path(text)
    if "\0" in text or not path.is_absolute() or not path.name:
        raise CWMError(Code.ARGUMENT, f"{text!r} is no absolute path of a file; give the whole path")
    return path


class Source:
    """A file that is being imported: `open` it first, and `close` it whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._file: BinaryIO | None = None

    def open(self) -> None:
        """Raises: CWM-1003 for what is no regular file, CWM-4002; else as `ArchiveReader`."""
        with reading(self.path):
            self._file = _opened(self.path)
            self.n_bytes = os.fstat(self._file.fileno()).st_size
            self._reader = ArchiveReader(self._file, self.n_bytes)

    @property
    def header(self) -> ArchiveHeader:
        return self._reader.header

    def read_into(self, buffer: memoryview) -> None:
        """See ArchiveReader."""
        with reading(self.path):
            self._reader.read_into(buffer)

    def finish(self) -> None:
        """See ArchiveReader."""
        with reading(self.path):
            self._reader.finish()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Target:
    """A file that is being exported: `begin`, `add`, `finish`, which makes it. Otherwise `discard` leaves nothing."""

    def __init__(self, path: Path, *, force: bool) -> None:
        self.path = path
        self._force = force
        self._unsynced = 0
        self._partial = path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(4)}{PARTIAL}")
        self._file: BinaryIO | None = None

    def begin(self, header: ArchiveHeader) -> None:
        """Raises: CWM-1003 if the path is taken; CWM-4001, CWM-4003."""
        with writing(self.path):
            self._require_free()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._partial, flags, 0o600), "wb", buffering=0)
            self._writer = ArchiveWriter(self._file, header)

    def add(self, part: memoryview) -> None:
        """See ArchiveWriter."""
        with writing(self.path):
            self._writer.add(part)
            self._unsynced += part.nbytes
            if self._unsynced >= _SYNC_EVERY_BYTES:
                self._settle()
                self._unsynced = 0

    def finish(self) -> int:
        """Gives the file its name, whole and durable; returns its length in bytes."""
        with writing(self.path):
            self._writer.finish()
            n_bytes = self._settle()
            self._require_free()
            self._partial.replace(self.path)
            fsync.sync(self.path.parent)
        self._close()
        return n_bytes

    def discard(self) -> None:
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)
        self._close()

    def _settle(self) -> int:
        """Returns how many bytes are on the disk, and no longer in the page cache."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return self._file.tell()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _require_free(self) -> None:
        """Raises: CWM-1003, OSError."""
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISREG(there.st_mode):
            raise CWMError(Code.ARGUMENT, f"{self.path} is there and is no regular file; choose another name")
        if not self._force:
            raise CWMError(Code.ARGUMENT, f"{self.path} exists; choose another name, or replace it with --force")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong in here is told as what it means for a file that is read."""
    try:
        yield
    except OSError as problem:
        raise CWMError(Code.READ_FAILED, f"{path} can't be read ({_reason(problem)}); check it and try again") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong in here is told as what it means for a file that is written."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CWMError(
                Code.QUOTA, f"there is no room for {path} ({_reason(problem)}); free some, or export to another disk"
            ) from None
        raise CWMError(
            Code.WRITE_FAILED, f"{path} can't be written ({_reason(problem)}); check the folder and try again"
        ) from None


def _opened(path: Path) -> BinaryIO:
    """A regular file, unbuffered. Looked at before it is opened, which is an act on some devices, and again after."""
    _require_regular(path, path.lstat())
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):  # replaced since
            raise _no_file(path) from None
        raise
    try:
        _require_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _no_file(path)


def _no_file(path: Path) -> CWMError:
    return CWMError(Code.ARGUMENT, f"{path} is a link or no regular file; give the exported file's own path")


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_MAX_NAME])


def _reason(problem: OSError) -> str:
    return problem.strerror or str(problem)
