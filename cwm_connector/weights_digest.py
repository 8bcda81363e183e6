"""SHA-256 of a model's weight files, remembered by path, size, inode and time so that a restart reads them no more.

The name of a model says nothing about its weights; KV made by other weights is silently wrong. So the passport holds
the hash of what was really loaded.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}:{status.st_size}:{status.st_ino}:{status.st_mtime_ns}"


def files_digest(files: Iterable[Path], cache: Path) -> str:
    """Hex SHA-256 over the contents of `files`, in the order of their names.

    `cache` (a JSON file, made where it is missing) keeps each file's own hash. An unreadable cache is made anew.
    Raises: OSError where a weight file can't be read.
    """
    try:
        known: dict[str, str] = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    total, seen = hashlib.sha256(), {}
    for path in sorted(files, key=lambda file: file.name):
        stamp = _stamp(path)
        if stamp not in known:
            with path.open("rb") as content:
                known[stamp] = hashlib.file_digest(content, "sha256").hexdigest()
        seen[stamp] = known[stamp]
        total.update(f"{path.name}:{known[stamp]}\n".encode())
    fresh = cache.with_name(f".{cache.name}.{os.getpid()}")
    fresh.write_text(json.dumps(seen))
    fresh.replace(cache)
    return total.hexdigest()
