"""Checkpoints of the shared catalog: a replica's file, made fit for any engine, in parts in Redis.

They let a new engine join without the history, and let the log forget: the token ids of a deleted window are in no
checkpoint. A kill at any instant leaves the old checkpoint or the new one, never a half: parts are published in one
step once all are there, and expire by themselves otherwise.

What is one engine's own does not travel: its notes, its store's id, and what lies on its disk.
"""

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from cwm_connector.catalog.shared.changes import Position, position
from cwm_connector.catalog.shared.log import Checkpoint, RedisLog, Trimmed, damaged
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.file import translated
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName

POSITION_NOTE: Final = "shared-log"
"""The name of the note in which a replica keeps the position that it has applied."""
PART_BYTES: Final = 16 << 20
_BLOCK_BYTES: Final = 1 << 20
_LEVEL: Final = 3
_OUTGOING: Final = "outgoing"
_INCOMING: Final = "incoming"


def publish(log: RedisLog, replica: Path, part_bytes: int = PART_BYTES) -> int:
    """Makes a checkpoint of the replica's state and trims the log up to it; returns the bytes of the records that went.

    Opens the file by itself, so it may run beside the catalog's thread; seconds to minutes where the catalog is large.
    Raises: CWM-4004 if the replica is damaged or doesn't belong to this log; what the link raises.
    """
    with _scratch(replica, _OUTGOING) as image:
        at = _make_image(replica, image)
        view = log.look()  # after the copy: the log is never behind it
        if view is None or not _continues(log, view.head, at):
            raise damaged("its history is not this engine's")
        before = view.checkpoint
        if before is not None and before.number >= at.number:
            return 0
        name, digests = os.urandom(8).hex(), []
        for number, part in enumerate(_packed(image, part_bytes)):
            log.put_part(name, number, part)
            digests.append(_digest(part))
    trimmed = log.publish(Checkpoint(name, tuple(digests), at.log, at.number, at.seal), before)
    if trimmed is None:
        raise CWMError(Code.BUSY, "another engine makes a checkpoint of the shared catalog; call again in a while")
    log.settle()
    return trimmed


def sweep_leftovers(replica: Path) -> None:
    """Removes the files that a killed engine left when it made or loaded a checkpoint. Only before either begins."""
    for what in (_OUTGOING, _INCOMING):
        _remove(_beside(replica, what))


@contextmanager
def fetched(log: RedisLog, checkpoint: Checkpoint, replica: Path) -> Iterator[Path]:
    """The checkpoint as a file that `SqliteCatalog` opens, beside the replica; removed again at the end.

    Raises: CWM-4004 if it is damaged; CWM-7003 if it was replaced meanwhile.
    """
    with _scratch(replica, _INCOMING) as image:
        unpacking = zlib.decompressobj()
        with image.open("wb") as file:
            for number, digest in enumerate(checkpoint.digests):
                part = log.part(checkpoint.name, number)
                if part is None:
                    raise _missing(log, checkpoint)
                if _digest(part) != digest:
                    raise damaged("a part of its checkpoint is not as it was written")
                file.write(unpacking.decompress(part))
        yield image


def _missing(log: RedisLog, checkpoint: Checkpoint) -> CWMError:
    view = log.look()
    if view is not None and view.checkpoint == checkpoint:
        return damaged("a part of its checkpoint is missing")
    return CWMError(Code.BUSY, "the shared catalog's checkpoint was just replaced; call again")


def _digest(part: bytes) -> bytes:
    return hashlib.blake2b(part, digest_size=16).digest()


def _continues(log: RedisLog, head: Position, at: Position) -> bool:
    """Whether the log went on from `at`, or stands there."""
    if head.log != at.log or head.number < at.number:
        return False
    if head.number == at.number:
        return head == at
    try:
        log.read(at)  # verifies whose seal the next record continues
    except Trimmed:
        # Another checkpoint is ahead of it already; `publish` finds that out.
        return True
    return True


def _make_image(replica: Path, image: Path) -> Position:
    """A sound copy without what is the engine's own; the position that it stands at."""
    with translated(str(replica)), closing(sqlite3.connect(replica, isolation_level=None)) as source:
        source.execute("VACUUM INTO ?", (str(image),))
    with closing(SqliteCatalog.open(image)) as catalog:
        catalog.check_integrity()
        noted = catalog.noted(POSITION_NOTE)
        if noted is None:
            raise damaged("this engine has applied nothing of it")
        catalog.place(TierName.DISK, (), [chunk.key for chunk in catalog.all_chunks()])
    with translated(str(image)), closing(sqlite3.connect(image, isolation_level=None)) as raw:
        raw.execute("PRAGMA secure_delete = ON")
        raw.execute("DELETE FROM notes WHERE name != ?", (POSITION_NOTE,))
        raw.execute("UPDATE about SET store = ''")
    return position(noted)


def _packed(image: Path, part_bytes: int) -> Iterator[bytes]:
    """Compressed, in parts of `part_bytes`; the last may be shorter."""
    ready = bytearray()
    for block in _compressed(image):
        ready += block
        while len(ready) > part_bytes:
            yield bytes(ready[:part_bytes])
            del ready[:part_bytes]
    yield bytes(ready)


def _compressed(image: Path) -> Iterator[bytes]:
    packing = zlib.compressobj(_LEVEL)
    with image.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield packing.compress(block)
    yield packing.flush()


@contextmanager
def _scratch(replica: Path, what: str) -> Iterator[Path]:
    """An empty file for its owner alone, with SQLite's files beside it removed before and after."""
    path = _beside(replica, what)
    _remove(path)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        yield path
    finally:
        _remove(path)


def _beside(replica: Path, what: str) -> Path:
    return replica.with_name(f"{replica.name}.{what}")


def _remove(path: Path) -> None:
    for each in (path, *(path.with_name(path.name + tail) for tail in ("-wal", "-shm", "-journal"))):
        each.unlink(missing_ok=True)
