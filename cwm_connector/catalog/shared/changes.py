"""The records of the shared log: one for each transaction, linked by seals to a chain. Pure functions.

The **seal** of a record is a digest over the seal before it and its own body. The seal is the checksum of the record,
its identity, because a random token in the body makes equal changes differ, and the proof of the history that it
continues. The first record continues the random id of the log. A record contains all times and names that are needed to
apply it.
"""

import hashlib
import os
from typing import Any, Final, NamedTuple

import msgspec

from cwm_connector.catalog.base import Binding, Catalog, NewWindow, Proof
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros

SEAL_BYTES: Final = 16
_TOKEN_BYTES: Final = 16


class Position(NamedTuple):
    """A position in a log."""

    log: bytes
    """The id of the log."""
    number: int
    """Records before this position."""
    seal: bytes
    """The seal of the last of them."""

    def __str__(self) -> str:
        return f"{self.log.hex()} {self.number} {self.seal.hex()}"


def position(text: str) -> Position:
    """Parse the text that `str` makes of a position. Raises ValueError."""
    log, number, seal = text.split(" ")
    found = Position(bytes.fromhex(log), int(number), bytes.fromhex(seal))
    if len(found.log) != SEAL_BYTES or len(found.seal) != SEAL_BYTES or found.number < 0:
        raise ValueError("its parts have the wrong lengths")
    return found


def beginning() -> Position:
    """Return the first position of a new log."""
    log = os.urandom(SEAL_BYTES)
    return Position(log, 0, log)


# --- changes ---


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    """See `Catalog.commit_window`."""

    new: NewWindow


class Clone(msgspec.Struct, frozen=True, array_like=True, tag="clone"):
    """See `Catalog.clone_window`."""

    source: str
    target: str
    description: str | None
    tags: tuple[str, ...] | None
    now: Micros


class Delete(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    """See `Catalog.delete_window`."""

    name: str
    keep: tuple[ChunkKey, ...]


class Sweep(msgspec.Struct, frozen=True, array_like=True, tag="sweep"):
    """See `Catalog.sweep_unreferenced`."""

    keep: tuple[ChunkKey, ...]


class Tag(msgspec.Struct, frozen=True, array_like=True, tag="tag"):
    """See `Catalog.tag_window`."""

    name: str
    add: tuple[str, ...]
    remove: tuple[str, ...]
    description: str | None
    now: Micros


class Rename(msgspec.Struct, frozen=True, array_like=True, tag="rename"):
    """See `Catalog.rename_window`."""

    name: str
    new_name: str
    now: Micros


class Bind(msgspec.Struct, frozen=True, array_like=True, tag="bind"):
    """See `Catalog.bind`."""

    binding: Binding


class Prove(msgspec.Struct, frozen=True, array_like=True, tag="prove"):
    """See `Catalog.add_proof`."""

    name: str
    proof: Proof


class Discard(msgspec.Struct, frozen=True, array_like=True, tag="discard"):
    """See `Trash.put`."""

    name: str
    command: str
    now: Micros


class Restore(msgspec.Struct, frozen=True, array_like=True, tag="restore"):
    """See `Trash.restore`."""

    name: str | None
    new_name: str | None
    now: Micros


class Purge(msgspec.Struct, frozen=True, array_like=True, tag="purge"):
    """See `Trash.purge`."""

    name: str
    trashed_at: Micros
    keep: tuple[ChunkKey, ...]


class Barrier(msgspec.Struct, frozen=True, array_like=True, tag="barrier"):
    """Changes nothing. Once it is in the log, an append that was meant for its position can't succeed any more."""


Change = Commit | Clone | Delete | Sweep | Tag | Rename | Bind | Prove | Discard | Restore | Purge | Barrier


def perform(change: Change, catalog: Catalog) -> Any:
    """Make the change in a catalog. Return the result of the catalog's method, or raise its errors."""
    match change:
        case Commit(new):
            return catalog.commit_window(new)
        case Clone(source, target, description, tags, now):
            return catalog.clone_window(source, target, description, tags, now)
        case Delete(name, keep):
            return catalog.delete_window(name, keep)
        case Sweep(keep):
            return catalog.sweep_unreferenced(keep)
        case Tag(name, add, remove, description, now):
            return catalog.tag_window(name, add, remove, description, now)
        case Rename(name, new_name, now):
            return catalog.rename_window(name, new_name, now)
        case Bind(binding):
            return catalog.bind(binding)
        case Prove(name, proof):
            return catalog.add_proof(name, proof)
        case Discard(name, command, now):
            return catalog.trash.put(name, command, now)
        case Restore(name, new_name, now):
            return catalog.trash.restore(name, new_name, now)
        case Purge(name, trashed_at, keep):
            return catalog.trash.purge(name, trashed_at, keep)
        case Barrier():
            return None


# --- records ---


class _Body(msgspec.Struct, frozen=True, array_like=True):
    number: int
    token: bytes
    engine: str
    change: Change


class Record(NamedTuple):
    """A change with its place in the log."""

    at: Position
    """The position after the record."""
    body: bytes
    change: Change
    engine: str
    """The id of the engine that wrote it."""


def record_after(base: Position, change: Change, engine: str) -> Record:
    """Return a new record that continues `base`. Two records of equal changes differ."""
    body = msgspec.msgpack.encode(_Body(base.number + 1, os.urandom(_TOKEN_BYTES), engine, change))
    return Record(Position(base.log, base.number + 1, seal_of(base.seal, body)), body, change, engine)


def open_record(base: Position, seal: bytes, body: bytes) -> Record:
    """Decode the record that continues `base`. Raises `Code.CORRUPT` if it is damaged or continues something else."""
    if seal_of(base.seal, body) != seal:
        raise CWMError(
            Code.CORRUPT,
            f"record {base.number + 1} of the shared catalog is damaged or continues another history; restore Redis "
            "from a backup with an undamaged catalog",
            record=base.number + 1,
        )
    try:
        content = msgspec.msgpack.decode(body, type=_Body)
    except msgspec.ValidationError:
        raise CWMError(
            Code.CORRUPT,
            f"record {base.number + 1} of the shared catalog comes from a newer version; update Context Window Manager",
            record=base.number + 1,
        ) from None
    return Record(Position(base.log, base.number + 1, seal), body, content.change, content.engine)


def seal_of(before: bytes, body: bytes) -> bytes:
    """Return the seal of a record with this body that continues the seal `before`."""
    return hashlib.blake2b(body, digest_size=SEAL_BYTES, key=before).digest()
