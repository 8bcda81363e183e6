"""Opens exported files at paths that a client names, and writes them whole or not at all.

Neither the path nor the file is trusted. Only regular files are opened, because FIFOs and devices could block or act
when they are opened, and no symbolic link is followed at the end of the path. A file under its final name is complete
and durable. It is first written beside it as `.<name>.<8 hex digits>.cwm-partial`, which is all that a kill can leave.

Every call may block on the disk. Any thread, one at a time.
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
"""Bytes of the final name that the temporary one repeats."""
_SYNC_EVERY_BYTES: Final = 256 * MIB
"""Keeps the last sync short, and the file out of the machine's page cache."""


def checked_path(text: str) -> Path:
    """Return the path that a client named. Raises: `Code.ARGUMENT` unless it is the absolute path of a file."""
    path = Path(text)
    if "\0" in text or not path.is_absolute() or not path.name:
        raise CWMError(Code.ARGUMENT, f"{text!r} is not the absolute path of a file; give the whole path")
    return path


class Source:
    """A file that is being imported. `open` it first, and `close` it in any case."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._file: BinaryIO | None = None

    def open(self) -> None:
        """Open the file and read its header.

        Raises: `Code.ARGUMENT` unless it is a regular file, `Code.READ_FAILED`, and what `ArchiveReader` raises.
        """
        with reading(self.path):
            self._file = _opened(self.path)
            self.n_bytes = os.fstat(self._file.fileno()).st_size
            self._reader = ArchiveReader(self._file, self.n_bytes)

    @property
    def header(self) -> ArchiveHeader:
        """Return the header of the opened file."""
        return self._reader.header

    def read_into(self, buffer: memoryview) -> None:
        """Read the next part. See ArchiveReader."""
        with reading(self.path):
            self._reader.read_into(buffer)

    def finish(self) -> None:
        """Check the end of the file. See ArchiveReader."""
        with reading(self.path):
            self._reader.finish()

    def close(self) -> None:
        """Close the file if it is open."""
        if self._file is not None:
            self._file.close()


class Target:
    """A file that is being exported: `begin`, `add` for each part, `finish`. `discard` removes an unfinished one."""

    def __init__(self, path: Path, *, force: bool) -> None:
        self.path = path
        self._force = force
        self._unsynced = 0
        self._partial = path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(4)}{PARTIAL}")
        self._file: BinaryIO | None = None

    def begin(self, header: ArchiveHeader) -> None:
        """Make the temporary file and write the header.

        Raises: `Code.ARGUMENT` if the path is taken, `Code.WRITE_FAILED`, `Code.QUOTA`.
        """
        with writing(self.path):
            self._require_free()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._partial, flags, 0o600), "wb", buffering=0)
            self._writer = ArchiveWriter(self._file, header)

    def add(self, part: memoryview) -> None:
        """Write the next part. See ArchiveWriter."""
        with writing(self.path):
            self._writer.add(part)
            self._unsynced += part.nbytes
            if self._unsynced >= _SYNC_EVERY_BYTES:
                self._sync()
                self._unsynced = 0

    def finish(self) -> int:
        """Make the file durable, give it its final name and return its length in bytes."""
        with writing(self.path):
            self._writer.finish()
            n_bytes = self._sync()
            self._require_free()
            self._partial.replace(self.path)
            fsync.sync(self.path.parent)
        self._close()
        return n_bytes

    def discard(self) -> None:
        """Remove the temporary file."""
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)
        self._close()

    def _sync(self) -> int:
        """Write the bytes to the disk, drop them from the page cache and return how many there are."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return self._file.tell()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _require_free(self) -> None:
        """Raise `Code.ARGUMENT` if the final name is taken and may not be replaced. Raises: OSError."""
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISREG(there.st_mode):
            raise CWMError(Code.ARGUMENT, f"{self.path} exists and is not a regular file; choose another name")
        if not self._force:
            raise CWMError(Code.ARGUMENT, f"{self.path} exists; choose another name, or replace it with --force")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into the error of a file that can't be read."""
    try:
        yield
    except OSError as problem:
        raise CWMError(Code.READ_FAILED, f"{path} can't be read ({_reason(problem)}); check it and try again") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into the error of a file that can't be written."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CWMError(
                Code.QUOTA,
                f"there is no room for {path} ({_reason(problem)}); free some space, or export to another disk",
            ) from None
        raise CWMError(
            Code.WRITE_FAILED, f"{path} can't be written ({_reason(problem)}); check the folder and try again"
        ) from None


def _opened(path: Path) -> BinaryIO:
    """Open a regular file without buffering. It is checked before, because opening a device can act, and after."""
    _require_regular(path, path.lstat())
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):  # replaced since
            raise _not_regular(path) from None
        raise
    try:
        _require_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _not_regular(path)


def _not_regular(path: Path) -> CWMError:
    return CWMError(Code.ARGUMENT, f"{path} is a link or not a regular file; give the path of the exported file itself")


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_MAX_NAME])


def _reason(problem: OSError) -> str:
    return problem.strerror or str(problem)
