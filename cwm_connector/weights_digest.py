"""Compute the SHA-256 of a model's weight files, and cache it so that a restart does not read them again.

The name of a model says nothing about its weights, and KV of other weights gives silently wrong answers. The passport
therefore holds the digest of the weights that were really loaded. A file's hash is cached by its path, size, inode and
modification time.

Called when the engine starts. Blocks while the files are read, which takes minutes for large models.
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
    """Return the SHA-256 of the contents of `files` in the order of their names, as hexadecimal digits.

    The JSON file `cache` keeps the hash of each file. It is created if it is missing or can't be read.
    Raises OSError if a weight file can't be read.
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
