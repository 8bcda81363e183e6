"""What makes a row of the embedded catalog trustworthy: a checksum over all its fields, kept in its column `digest`.

SQLite notices damage to its own structure, never to a value. So whoever writes a row seals it, whoever reads it
compares, and nothing that does not pass is handed on.
"""

from hashlib import blake2b
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError

DIGEST_BYTES: Final = 8


def seal(*fields: Any) -> int:
    """The checksum of a row. The first field names the table, so that no row passes in another one's place."""
    # ascii() tells types apart and escapes all else alike in every version of Python, which repr() does not.
    return seal_bytes(ascii(fields).encode("ascii"))


def seal_bytes(data: bytes) -> int:
    """The checksum of bytes too many to stand in a row's tuple, as SQLite's signed 64 bits."""
    return int.from_bytes(blake2b(data, digest_size=DIGEST_BYTES).digest(), "big", signed=True)


def damaged(what: str, **context: Any) -> CWMError:
    """For the caller to raise where a row did not pass, or is not there although another one refers to it."""
    return CWMError(
        Code.CORRUPT, f"the catalog's record of {what} is damaged; restore the catalog from a copy", **context
    )


def damaged_window(name: str) -> CWMError:
    return damaged(f"window {name!r}", window=name)
