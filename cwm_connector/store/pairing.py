"""Pairs a chunk folder with one home, so that no other home's catalog ever sweeps it. Blocks on the disk."""

import errno
import fcntl
import logging
import os
import secrets
from pathlib import Path
from typing import Final

from cwm_connector.core import fsync
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import private_folder

logger = logging.getLogger(__name__)
_STORE_ID = "store.id"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EXDEV})
"""Errors of a file system without hard links, such as exFAT, many network shares and FUSE."""


def open_home(home: Path, chunks: Path, catalog: Path) -> str:
    """Make both folders if they are missing, pair them and return their id.

    Any process of an engine may call it, at the same time as others.
    Raises: `Code.ARGUMENT` for a folder that can't be written or belongs to another home, and for a chunk folder that
    lost its mark, such as one whose disk is not mounted.
    """
    private_folder(home, "CWM_HOME")
    try:
        _require_mounted(home, chunks, catalog)
        return pair_store(home, private_folder(chunks, "CWM_DISK_PATH"))
    except OSError as problem:
        raise CWMError(
            Code.ARGUMENT,
            f"CWM_HOME {home} and CWM_DISK_PATH {chunks} can't be paired ({problem.strerror}); correct the folders' "
            "disk or permissions, or choose others",
        ) from None


def pair_store(home: Path, chunks: Path) -> str:
    """Mark the chunk folder as this home's own and return the id that both carry.

    Any process of an engine may call it, at the same time as others.
    Raises: `Code.ARGUMENT` if the folder belongs to another home.
    """
    home_mark, chunks_mark = home / _STORE_ID, chunks / _STORE_ID
    adopted = chunks_mark.read_text() if chunks_mark.exists() and home == chunks.parent else None
    store_id = _write_once(home_mark, adopted or secrets.token_hex(16))
    if _write_once(chunks_mark, store_id) != store_id:
        raise CWMError(
            Code.ARGUMENT,
            f"CWM_DISK_PATH names {chunks}, which holds the chunks of another CWM_HOME; choose another folder",
        )
    return store_id


def _require_mounted(home: Path, chunks: Path, catalog: Path) -> None:
    """Check that a home with a catalog has its chunk folder. Otherwise all its chunks would be recorded as gone.

    A start that was killed may have marked only the home. It has made no catalog yet.
    """
    if (home / _STORE_ID).exists() and not (chunks / _STORE_ID).exists() and _has_content(catalog):
        raise CWMError(
            Code.ARGUMENT,
            f"CWM_DISK_PATH names {chunks}, which lacks the chunks of this CWM_HOME; mount its disk, or copy "
            f"{home / _STORE_ID} into it to go on without them",
        )


def _has_content(catalog: Path) -> bool:
    return catalog.exists() and catalog.stat().st_size > 0


def _write_once(path: Path, text: str) -> str:
    """Return the file's text. If there is no file, write `text`: whole and durable as soon as it can be seen."""
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        fresh.write_text(text, encoding="ascii")
        try:
            fsync.sync(fresh)
            _publish(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        fsync.sync(path.parent)
    return path.read_text(encoding="ascii", errors="replace")


def _publish(fresh: Path, path: Path) -> None:
    """Give the file its name, unless another process was first. Some file systems have no hard links."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    except OSError as problem:
        if problem.errno not in _NO_LINKS:
            raise
        with path.with_name(f".{path.name}.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not path.exists():
                fresh.rename(path)


def require_catalog(catalog: Path, chunks: Path) -> None:
    """Check that a folder with chunks has its catalog. Call it before a catalog is opened or made.

    Chunks without a catalog belong to windows that can still be restored, so they must not be swept as orphans.
    Raises: `Code.CORRUPT` if the catalog is missing while the folder holds chunks.
    """
    if _has_content(catalog):
        return
    if any(path.suffix == ".data" for path in chunks.iterdir()):
        raise CWMError(
            Code.CORRUPT,
            f"the catalog {catalog} is missing and {chunks} holds chunks; restore it from a copy, or move them away",
        )
