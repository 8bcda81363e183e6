"""Checkpoints of the shared catalog: the file of a replica without the engine's own data, stored in parts in Redis.

A new engine starts from a checkpoint and does not need the whole log. The records before a checkpoint are removed, so
that the token ids of a deleted window do not stay in Redis. After a kill at any instant there is either the old
checkpoint or the new one. All parts are published in one step, and parts that are not published expire.

An engine's own data is left out: its notes, the id of its home and the chunks on its disk.

Making a checkpoint takes seconds to minutes and may run on a thread of its own, beside the catalog thread. Loading one
blocks the catalog thread.
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
from cwm_connector.core.units import MIB

POSITION_NOTE: Final = "shared-log"
"""The name of the note with the position up to which a replica has applied the log."""
PART_BYTES: Final = 16 * MIB
"""The size of a part."""
_READ_BYTES: Final = MIB
_LEVEL: Final = 3
_OUTGOING: Final = "outgoing"
_INCOMING: Final = "incoming"


def publish(log: RedisLog, replica: Path, part_bytes: int = PART_BYTES) -> int:
    """Make a checkpoint of the replica and trim the log up to it. Return the bytes of the trimmed records.

    Any thread, because it opens the file of the replica itself. Takes seconds to minutes if the catalog is large.
    Raises `Code.CORRUPT` if the replica is damaged or does not belong to this log, `Code.BUSY` if another engine makes
    a checkpoint, and the errors of the link.
    """
    with _scratch(replica, _OUTGOING) as image:
        at = _make_image(replica, image)
        view = log.look()  # after the copy, so that the log is never behind it
        if view is None or not _continues(log, view.head, at):
            raise damaged("it has another history than this engine")
        before = view.checkpoint
        if before is not None and before.number >= at.number:
            return 0
        name, digests = os.urandom(8).hex(), []
        for number, part in enumerate(_packed(image, part_bytes)):
            log.put_part(name, number, part)
            digests.append(_digest(part))
    trimmed = log.publish(Checkpoint(name, tuple(digests), at.log, at.number, at.seal), before)
    if trimmed is None:
        raise CWMError(Code.BUSY, "another engine is making a checkpoint of the shared catalog; call again later")
    log.settle()
    return trimmed


def sweep_leftovers(replica: Path) -> None:
    """Remove the files that a killed engine left while it made or loaded a checkpoint.

    Call it before the engine makes or loads one itself.
    """
    for what in (_OUTGOING, _INCOMING):
        _remove(_beside(replica, what))


@contextmanager
def fetched(log: RedisLog, checkpoint: Checkpoint, replica: Path) -> Iterator[Path]:
    """Read the checkpoint into a file next to the replica, which `SqliteCatalog` can open. Remove the file at the end.

    Raises `Code.CORRUPT` if it is damaged, `Code.BUSY` if it was replaced in the meantime.
    """
    with _scratch(replica, _INCOMING) as image:
        unpacking = zlib.decompressobj()
        with image.open("wb") as file:
            for number, digest in enumerate(checkpoint.digests):
                part = log.part(checkpoint.name, number)
                if part is None:
                    raise _missing(log, checkpoint)
                if _digest(part) != digest:
                    raise damaged("a part of its checkpoint has changed")
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
    """Return whether the log contains the position `at`."""
    if head.log != at.log or head.number < at.number:
        return False
    if head.number == at.number:
        return head == at
    try:
        log.read(at)  # verifies that the next record continues the seal of `at`
    except Trimmed:
        # Another checkpoint is ahead of `at` already. `publish` checks for that.
        return True
    return True


def _make_image(replica: Path, image: Path) -> Position:
    """Make a checked copy of the replica without the engine's own data. Return the position of the replica."""
    with translated(str(replica)), closing(sqlite3.connect(replica, isolation_level=None)) as source:
        source.execute("VACUUM INTO ?", (str(image),))
    with closing(SqliteCatalog.open(image)) as catalog:
        catalog.check_integrity()
        noted = catalog.noted(POSITION_NOTE)
        if noted is None:
            raise damaged("this engine has not applied any record of it")
        keys = [chunk.key for chunk in catalog.all_chunks()]
        for tier in (tier for tier in TierName.durable() if not tier.shareable):
            catalog.place(tier, (), keys)
    with translated(str(image)), closing(sqlite3.connect(image, isolation_level=None)) as raw:
        raw.execute("PRAGMA secure_delete = ON")
        raw.execute("DELETE FROM notes WHERE name != ?", (POSITION_NOTE,))
        raw.execute("UPDATE about SET store = ''")
    return position(noted)


def _packed(image: Path, part_bytes: int) -> Iterator[bytes]:
    """Yield the compressed image in parts of `part_bytes`. The last part may be shorter."""
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
        while block := file.read(_READ_BYTES):
            yield packing.compress(block)
    yield packing.flush()


@contextmanager
def _scratch(replica: Path, what: str) -> Iterator[Path]:
    """Create an empty file for its owner alone. Remove it, and the files that SQLite adds to it, before and after."""
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
