"""Compute the SHA-256 of a model's weight files, and cache it so that a restart does not read them again.

The name of a model says nothing about its weights, and KV of other weights gives silently wrong answers. The passport
therefore holds the digest of the weights that were really loaded. A file's hash is cached by its path, size, inode and
modification time, as soon as the file is read. A start that is stopped meanwhile leaves less to the next one.

Called when the engine starts. Blocks while the files are read by several threads, which takes minutes for large models.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

MAX_THREADS: Final = 8
"""One thread hashes about a gigabyte a second."""


def files_digest(files: Iterable[Path], cache: Path) -> str:
    """Return the SHA-256 of the contents of `files` in the order of their names, as hexadecimal digits.

    The JSON file `cache` keeps the hash of each file. It is created if it is missing or can't be read.
    Raises OSError if a weight file can't be read.
    """
    ordered = sorted(files, key=lambda file: file.name)
    hashes = _Hashes(cache, ordered)
    total = hashlib.sha256()
    with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))), "cwm-weights") as threads:
        for path, digest in zip(ordered, threads.map(hashes.of, ordered), strict=True):
            total.update(f"{path.name}:{digest}\n".encode())
    return total.hexdigest()


class _Hashes:
    """The hashes of some files. Any thread."""

    def __init__(self, cache: Path, files: Iterable[Path]) -> None:
        """Read the cache, and forget other files than these."""
        stamps = {_stamp(path) for path in files}
        self._cache = cache
        self._lock = threading.Lock()
        self._known = {stamp: digest for stamp, digest in _read(cache).items() if stamp in stamps}

    def of(self, path: Path) -> str:
        """Return the hash of a file, and remember it."""
        stamp = _stamp(path)
        with self._lock:
            digest = self._known.get(stamp)
        if digest is not None:
            return digest
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        with self._lock:
            self._known[stamp] = digest
            fresh = self._cache.with_name(f".{self._cache.name}.{os.getpid()}")
            fresh.write_text(json.dumps(self._known))
            fresh.replace(self._cache)
        return digest


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}:{status.st_size}:{status.st_ino}:{status.st_mtime_ns}"


def _read(cache: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return known
