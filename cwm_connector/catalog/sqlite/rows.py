"""The checksums that protect the rows of the embedded catalog, one over all fields of a row, in its column `digest`.

SQLite detects damage to its own structure but not to a value. The code that writes a row therefore seals it, and the
code that reads a row compares the checksum. A row that fails is never returned.

Pure functions for any thread. Nothing here blocks.
"""

from hashlib import blake2b
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError

DIGEST_BYTES: Final = 8


def seal(*fields: Any) -> int:
    """Return the checksum of a row. The first field names the table, so that a row of another table fails."""
    # ascii() distinguishes types, and unlike repr() it escapes in the same way in every version of Python.
    return seal_bytes(ascii(fields).encode("ascii"))


def seal_bytes(data: bytes) -> int:
    """Return the checksum of a large value as a signed 64-bit integer, which SQLite can store."""
    return int.from_bytes(blake2b(data, digest_size=DIGEST_BYTES).digest(), "big", signed=True)


def damaged(what: str, **context: Any) -> CWMError:
    """Return the error for a row that failed its checksum, or that is missing although another row refers to it."""
    return CWMError(
        Code.CORRUPT, f"the catalog's record of {what} is damaged; restore the catalog from a backup", **context
    )


def damaged_window(name: str) -> CWMError:
    """Return the error for a damaged row of a window."""
    return damaged(f"window {name!r}", window=name)
