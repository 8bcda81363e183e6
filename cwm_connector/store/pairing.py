"""How a chunk folder is bound to one catalog, so that no other catalog ever sweeps it."""

import logging
import os
import secrets
from pathlib import Path

from cwm_connector.core import fsync
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import private_folder

logger = logging.getLogger(__name__)
_STORE_ID = "store.id"


def open_home(home: Path, chunks: Path) -> str:
    """Make both folders where they are missing, pair them and return the store's id.

    Any process of an engine may call it, at the same time as others.
    Raises: CWM-1003 for a folder that can't be written or belongs to another catalog.
    """
    private_folder(home, "CWM_HOME")
    return pair_store(home, private_folder(chunks, "CWM_DISK_PATH"))


def pair_store(home: Path, chunks: Path) -> str:
    """Marks the chunk folder as this catalog's own, so that no other catalog ever sweeps it; returns the store's id.

    Any process of an engine may call it, at the same time as others.
    Raises: CWM-1003 if the folder belongs to another catalog.
    """
    mine, theirs = home / _STORE_ID, chunks / _STORE_ID
    adopted = theirs.read_text() if theirs.exists() and home == chunks.parent else None
    store_id = _write_once(mine, adopted or secrets.token_hex(16))
    if _write_once(theirs, store_id) != store_id:
        raise CWMError(
            Code.ARGUMENT,
            f"CWM_DISK_PATH names {chunks}, which holds the chunks of another CWM_HOME; choose another folder",
        )
    return store_id


def _write_once(path: Path, text: str) -> str:
    """The file's text: `text` if there was no file, whole and durable from the moment that it can be seen."""
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        fresh.write_text(text)
        fsync.sync(fresh)
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass  # another process was first
        finally:
            fresh.unlink()
        fsync.sync(path.parent)
    return path.read_text()


def require_catalog(catalog: Path, chunks: Path) -> None:
    """Before a catalog is opened, and made where there is none: chunks without one are somebody's, not orphans.

    Raises: CWM-4004 if the catalog is gone while the folder holds chunks.
    """
    if catalog.exists() and catalog.stat().st_size:
        return
    if any(path.suffix == ".data" for path in chunks.iterdir()):
        raise CWMError(
            Code.CORRUPT,
            f"the catalog {catalog} is gone and {chunks} holds chunks; restore it from a copy, or move the chunks away",
        )
