"""The shared catalog's log as bytes: one record for each transaction, sealed into a chain. Pure functions.

A record's **seal** is a digest over the seal before it and its own body. So one value is its checksum, its identity
(a random token in the body makes equal changes differ) and the proof of which history it continues; the first record
continues the log's own random id. Applying a record needs nothing but the record: times and names are in it.
"""

import hashlib
import os
from typing import Any, Final, NamedTuple

import msgspec

from cwm_connector.catalog.base import Binding, Catalog, NewWindow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros

SEAL_BYTES: Final = 16
_TOKEN_BYTES: Final = 16


class Position(NamedTuple):
    """A place in a log: so many records lie before it, and this is what was sealed there last."""

    log: bytes
    number: int
    seal: bytes

    def __str__(self) -> str:
        return f"{self.log.hex()} {self.number} {self.seal.hex()}"


def position(text: str) -> Position:
    """The inverse of `str`. Raises: ValueError."""
    log, number, seal = text.split(" ")
    found = Position(bytes.fromhex(log), int(number), bytes.fromhex(seal))
    if len(found.log) != SEAL_BYTES or len(found.seal) != SEAL_BYTES or found.number < 0:
        raise ValueError("its parts have other lengths")
    return found


def beginning() -> Position:
    """Of a log that did not exist until now."""
    log = os.urandom(SEAL_BYTES)
    return Position(log, 0, log)


# --- what a transaction did ---


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    new: NewWindow


class Clone(msgspec.Struct, frozen=True, array_like=True, tag="clone"):
    source: str
    target: str
    description: str | None
    tags: tuple[str, ...] | None
    now: Micros


class Delete(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    name: str
    keep: tuple[ChunkKey, ...]


class Sweep(msgspec.Struct, frozen=True, array_like=True, tag="sweep"):
    keep: tuple[ChunkKey, ...]


class Tag(msgspec.Struct, frozen=True, array_like=True, tag="tag"):
    name: str
    add: tuple[str, ...]
    remove: tuple[str, ...]
    description: str | None
    now: Micros


class Bind(msgspec.Struct, frozen=True, array_like=True, tag="bind"):
    binding: Binding


class Barrier(msgspec.Struct, frozen=True, array_like=True, tag="barrier"):
    """Changes nothing: with it in the log, an append that was default_head for its place can't arrive any more."""


Change = Commit | Clone | Delete | Sweep | Tag | Bind | Barrier


def perform(change: Change, catalog: Catalog) -> Any:
    """Runs the change; what the catalog's method returns or raises."""
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
        case Bind(binding):
            return catalog.bind(binding)
        case Barrier():
            return None


# --- records ---


class _Body(msgspec.Struct, frozen=True, array_like=True):
    number: int
    token: bytes
    engine: str
    change: Change


class Record(NamedTuple):
    at: Position
    """Where the log stands once the record is in it."""
    body: bytes
    change: Change
    engine: str
    """The id of the engine that wrote it."""


def record_after(base: Position, change: Change, engine: str) -> Record:
    """A new record; equal changes make different ones."""
    body = msgspec.msgpack.encode(_Body(base.number + 1, os.urandom(_TOKEN_BYTES), engine, change))
    return Record(Position(base.log, base.number + 1, seal_of(base.seal, body)), body, change, engine)


def opened(base: Position, seal: bytes, body: bytes) -> Record:
    """The record that continues `base`. Raises: CWM-4004 if it is damaged, or continues something else."""
    if seal_of(base.seal, body) != seal:
        raise CWMError(
            Code.CORRUPT,
            f"record {base.number + 1} of the shared catalog is damaged or continues another history; restore Redis "
            "from a copy that has it whole",
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
    """`before`: the seal that `body` continues."""
    return hashlib.blake2b(body, digest_size=SEAL_BYTES, key=before).digest()
