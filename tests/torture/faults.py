"""Bugs to plant in a child, so that it shows whether the harness finds them. The product itself has no hook for any.

Each replaces something by name and fails at once where there is nothing of that name any more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.catalog.sqlite.file import SqliteFile
from cwm_connector.core.types import TierName
from cwm_connector.operations.context import claimed
from cwm_connector.operations.delete import Deleter
from cwm_connector.operations.tiering import Tiering
from cwm_connector.protocol.results import Deleted
from cwm_connector.tiers import chunk
from cwm_connector.tiers.disk import tier
from cwm_connector.tiers.redis.tier import RedisTier
from tests.support.miniature import chunk_files
from tests.torture.judge import Violation


@dataclass(frozen=True, slots=True)
class Fault:
    """A violation whose text has one of `says` in it must have been found within `loops`."""

    plant: Callable[[], None]
    says: tuple[str, ...]
    loops: int
    between: Callable[[Path], None] | None = None
    """Done to the store, whose home is given, after each loop."""
    needs_power_cuts: bool = True
    killed_in: str | None = None
    """The act that kills are aimed at: a bug of an order shows only in the middle of it."""
    redis: str | None = None
    """The `appendfsync` of the Redis that it needs."""

    def is_found(self, violation: Violation) -> bool:
        return any(words in violation.text for words in self.says)


def _replace(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: plant the fault where its work is done now"
    setattr(owner, name, value)


def commit_without_fsync() -> None:
    opened = SqliteFile.open

    def open_carelessly(*arguments: Any) -> SqliteFile:
        file = opened(*arguments)
        file._connection.execute("PRAGMA synchronous = OFF")
        return file

    _replace(SqliteFile, "open", open_carelessly)


def chunks_without_fsync() -> None:
    _replace(tier, "sync_path", lambda path: None)


def chunk_names_without_fsync() -> None:
    _replace(tier.DiskTier, "sync", lambda self: None)


def no_checksum() -> None:
    """Header and length are still looked at."""
    at = chunk._CHECKSUM_AT
    _replace(chunk, "_checksum", lambda buffer: int.from_bytes(buffer[at : at + 8], "little"))


def flip_a_bit(home: Path) -> None:
    """In the middle of a chunk's payload."""
    for path in chunk_files(home)[:1]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def bytes_before_the_transaction() -> None:
    async def delete(self: Deleter, name: str) -> Deleted:
        rows = await self._engine.catalog.run(lambda catalog: catalog.chunks_of(name))
        unshared = await self._engine.catalog.run(lambda catalog: catalog.window(name).unique_bytes)
        if unshared == sum(row.size_bytes for row in rows):
            await self._tiering.remove(rows)
        return await deleted(self, name)

    deleted = Deleter._delete
    _replace(Deleter, "_delete", delete)


def disk_before_redis() -> None:
    """A chunk leaves the disk before Redis has it."""

    async def demote(self: Tiering, rows: Sequence[ChunkRow]) -> int:
        await self._record(TierName.DISK, went=[row.key for row in rows])
        await self._engine.drop(claimed(rows), (TierName.DISK,))
        return await demoted(self, rows)

    demoted = Tiering._demote
    _replace(Tiering, "_demote", demote)


def redis_without_fsync() -> None:
    _replace(RedisTier, "sync", lambda self: None)


_NOT_WHOLE: Final = ("restores", "bad copies", "loaded")
"""What a window, a verification and a reader say of bytes that went."""

FAULTS: Final = {
    "commit-without-fsync": Fault(
        commit_without_fsync, ("is not listed", "is listed and was deleted", "it is damaged"), 150
    ),
    "chunks-without-fsync": Fault(chunks_without_fsync, _NOT_WHOLE, 150),
    "chunk-names-without-fsync": Fault(chunk_names_without_fsync, _NOT_WHOLE, 150),
    "no-checksum": Fault(no_checksum, ("wrong bytes",), 150, flip_a_bit, needs_power_cuts=False),
    "bytes-before-the-transaction": Fault(
        bytes_before_the_transaction, _NOT_WHOLE, 300, needs_power_cuts=False, killed_in="delete"
    ),
    "disk-before-redis": Fault(
        disk_before_redis, _NOT_WHOLE, 300, needs_power_cuts=False, killed_in="demote", redis="always"
    ),
    "redis-without-fsync": Fault(redis_without_fsync, _NOT_WHOLE, 150, redis="everysec"),
}
