"""The log of the shared catalog in Redis: one stream for each namespace, and a hash with facts about it.

    NAMESPACE:catalog:{NAMESPACE}:facts      hash: `log` is the id of the log, `head` the position and seal of the last
                                             record, `settled` the last record that is known to be on Redis's disk,
                                             `bytes` the size of the records since the last checkpoint, `checkpoint` the
                                             sealed description of the current checkpoint
    NAMESPACE:catalog:{NAMESPACE}:log        stream: entry n-0 is record n, with its seal and body
    NAMESPACE:catalog:{NAMESPACE}:part:I:N   parts of checkpoint I, which expire until they are published, and again
                                             once they are replaced

All keys are in one slot of a cluster. Changes that belong together are one script. Every method may block for the
time-outs of the link, and raises the errors of the link. See `redis/link.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cwm_connector.catalog.shared.changes import Position, Record, beginning, open_record, seal_of
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis import RedisLink, require_for_catalog

UNPUBLISHED_S: Final = 3600
"""Seconds after which the parts of a checkpoint expire if it is not published."""
REPLACED_S: Final = 600
"""Seconds after which the parts of a replaced checkpoint expire. Another engine may still be reading them."""
_READ_COUNT: Final = 16
"""Records that one call reads."""

_CREATE: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('HSET', KEYS[1], 'log', ARGV[1], 'head', ARGV[2], 'settled', 0, 'bytes', 0)
end
"""
_APPEND: Final = """
local now = redis.call('HMGET', KEYS[1], 'log', 'head')
if now[1] ~= ARGV[1] or now[2] ~= ARGV[2] then return 0 end
redis.call('XADD', KEYS[2], ARGV[3] .. '-0', 'seal', ARGV[5], 'body', ARGV[6])
redis.call('HSET', KEYS[1], 'head', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'bytes', #ARGV[6])
return 1
"""
_SETTLE: Final = """
local now = redis.call('HMGET', KEYS[1], 'log', 'settled')
if now[1] == ARGV[1] and tonumber(now[2]) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], 'settled', ARGV[2]) end
"""
# ARGV: log, the checkpoint it replaces, the new one, the first record to keep, parts, seconds for the replaced parts.
_PUBLISH: Final = """
local now = redis.call('HMGET', KEYS[1], 'log', 'checkpoint', 'bytes')
if now[1] ~= ARGV[1] or (now[2] or '') ~= ARGV[2] then return -1 end
local parts = tonumber(ARGV[5])
for n = 3, 2 + parts do if redis.call('EXISTS', KEYS[n]) == 0 then return -1 end end
for n = 3, 2 + parts do redis.call('PERSIST', KEYS[n]) end
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[4] .. '-0')
local left = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do left = left + #entry[2][4] end
redis.call('HSET', KEYS[1], 'checkpoint', ARGV[3], 'bytes', left)
for n = 3 + parts, #KEYS do redis.call('EXPIRE', KEYS[n], ARGV[6]) end
return now[3] - left
"""


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """The description of a checkpoint, which is the whole catalog as of one record."""

    name: str
    digests: tuple[bytes, ...]
    """The digest of each part."""
    log: bytes
    number: int
    seal: bytes

    @property
    def at(self) -> Position:
        """Return the position after the last record that the checkpoint contains."""
        return Position(self.log, self.number, self.seal)


@dataclass(frozen=True, slots=True)
class View:
    """The state of the log at one moment."""

    head: Position
    durable: int
    """The number of the last record that is known to be on Redis's disk."""
    checkpoint: Checkpoint | None
    bytes: int
    """The size of the records since the last checkpoint."""


class RedisLog:
    """The log of one namespace."""

    def __init__(self, link: RedisLink, namespace: str) -> None:
        self._link = link
        self._prefix = f"{namespace}:catalog:{{{namespace}}}"
        self._facts, self._log = f"{self._prefix}:facts", f"{self._prefix}:log"

    def look(self, timeout_s: float | None = None) -> View | None:
        """Return the state of the log, or None if there is no log. One round trip.

        Raises `Code.CORRUPT` if the facts can't be read, `Code.ARGUMENT` for a server that can't keep a log.
        """
        names = ("log", "head", "settled", "checkpoint", "bytes")
        found = self._link.call("HMGET", self._facts, *names, timeout_s=timeout_s, repeatable=True)
        # Only after the first call is the link connected to the node that has the keys.
        require_for_catalog(self._link.state())
        if not any(found):
            return None
        try:
            log, head, durable, checkpoint, size = found
            number, seal = head.split(b" ")
            position = Position(_unhex(log), int(number), _unhex(seal))
            if _head(position).encode() != head:
                raise ValueError("a number that is not written as we write it")
            return View(position, int(durable), _checkpoint(checkpoint), int(size))
        except (AttributeError, ValueError, TypeError, msgspec.DecodeError):
            raise damaged("its facts can't be read") from None

    def create(self) -> None:
        """Create the log unless there is one."""
        at = beginning()
        self._link.call("EVAL", _CREATE, 2, self._facts, self._log, at.log.hex(), _head(at))

    def read(self, base: Position) -> Sequence[Record]:
        """Return the next records after `base`, as many as one call reads.

        Raises `Code.CORRUPT` if they do not continue `base`, `Trimmed` if the next record is only in a checkpoint.
        """
        entries = self._link.call("XRANGE", self._log, f"{base.number + 1}-0", "+", "COUNT", _READ_COUNT)
        records = []
        for number, fields in entries:
            if number != b"%d-0" % (base.number + 1):
                raise Trimmed(base)
            record = open_record(base, *_entry(fields))
            records.append(record)
            base = record.at
        return records

    def has(self, record: Record) -> bool | None:
        """Return whether the log has this record at its position, or None if it has no record there."""
        place = f"{record.at.number}-0"
        entries = self._link.call("XRANGE", self._log, place, place)
        return _entry(entries[0][1])[0] == record.at.seal if entries else None

    def append(self, base: Position, record: Record) -> bool:
        """Append the record after `base` in one step. Return False and do nothing if `base` is not the head."""
        keys = (self._facts, self._log)
        at = record.at
        heads = (_head(base), at.number, _head(at))
        return bool(self._link.call("EVAL", _APPEND, 2, *keys, base.log.hex(), *heads, at.seal, record.body))

    def settle(self) -> None:
        """Wait until everything that this connection read or appended is on Redis's disk."""
        self._link.sync()

    def mark_durable(self, at: Position) -> None:
        """Publish that the records up to `at` are on Redis's disk, so that other engines may apply them."""
        self._link.call("EVAL", _SETTLE, 1, self._facts, at.log.hex(), at.number)

    @property
    def settles_at_once(self) -> bool:
        return self._link.state().syncs_each_write

    # --- checkpoints ---

    def put_part(self, name: str, number: int, part: bytes) -> None:
        """Store a part of a checkpoint, which expires after `UNPUBLISHED_S` unless the checkpoint is published."""
        self._link.call("SET", self._part(name, number), part, "EX", UNPUBLISHED_S)

    def part(self, name: str, number: int) -> bytes | None:
        """Return a part of a checkpoint, or None if it has expired."""
        found: bytes | None = self._link.call("GET", self._part(name, number))
        return found

    def publish(self, new: Checkpoint, replaced: Checkpoint | None) -> int | None:
        """Make `new` the checkpoint and trim the log up to it, in one step. Return the bytes of the trimmed records.

        Return None and do nothing if another engine has replaced `replaced`, or a part has expired.
        """
        keys = [self._facts, self._log, *(self._part(new.name, n) for n in range(len(new.digests)))]
        before = b""
        if replaced is not None:
            before = _sealed(replaced)
            keys += [self._part(replaced.name, n) for n in range(len(replaced.digests))]
        values = (new.log.hex(), before, _sealed(new), new.number + 1, len(new.digests), REPLACED_S)
        trimmed = int(self._link.call("EVAL", _PUBLISH, len(keys), *keys, *values))
        return None if trimmed < 0 else trimmed

    def _part(self, name: str, number: int) -> str:
        return f"{self._prefix}:part:{name}:{number}"

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


class Trimmed(Exception):
    """Raised if the records after a position are no longer in the log."""

    def __init__(self, base: Position) -> None:
        super().__init__(f"record {base.number + 1} is only in a checkpoint")


def damaged(why: str) -> CWMError:
    """Return the error for a damaged log."""
    return CWMError(
        Code.CORRUPT,
        f"the shared catalog in Redis is damaged: {why}; restore Redis from a backup with an undamaged catalog",
        reason=why,
    )


def _head(at: Position) -> str:
    return f"{at.number} {at.seal.hex()}"


def _unhex(text: bytes) -> bytes:
    """Parse hexadecimal digits. Raises ValueError if they are not written exactly as we write them."""
    found = bytes.fromhex(text.decode())
    if found.hex().encode() != text:
        raise ValueError("hexadecimal digits that are not written as we write them")
    return found


def _entry(fields: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the seal and the body of an entry. An entry that is not a record gets a seal that never matches."""
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    return found.get(b"seal", b""), found.get(b"body", b"")


def _sealed(checkpoint: Checkpoint) -> bytes:
    body = msgspec.msgpack.encode(checkpoint)
    return seal_of(checkpoint.seal, body) + body


def _checkpoint(text: bytes | None) -> Checkpoint | None:
    """Decode the description of a checkpoint. Raises ValueError, or the errors of msgspec."""
    if text is None:
        return None
    checkpoint = msgspec.msgpack.decode(text[16:], type=Checkpoint)
    if _sealed(checkpoint) != text:
        raise ValueError("its seal does not match")
    return checkpoint
