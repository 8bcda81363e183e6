"""The shared catalog's log where it lies: one stream of a namespace in Redis, and the facts about it.

    NAMESPACE:catalog:{NAMESPACE}:facts      hash: `log` its id, `head` position and seal of the last record, `settled`
                                             up to where it is known to be on Redis's disk, `bytes` since the last
                                             checkpoint, `checkpoint` the sealed description of the current one
    NAMESPACE:catalog:{NAMESPACE}:log        stream: entry n-0 is record n, with its seal and body
    NAMESPACE:catalog:{NAMESPACE}:part:I:N   the parts of checkpoint I; they expire until they are published, and again
                                             once they are replaced

All keys are in one slot of a cluster, and what must happen together is one script. Every method may block for as long
as the link's time-outs say, and raises what the link raises; see `redis/link.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cwm_connector.catalog.shared.changes import Position, Record, beginning, opened, seal_of
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis.link import RedisLink

UNPUBLISHED_S: Final = 3600
"""How long a checkpoint's parts last while it is being made."""
REPLACED_S: Final = 600
"""How long a replaced checkpoint's parts last, for an engine that is still reading them."""
_READ_COUNT: Final = 16

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
    """The whole catalog as it was behind one record, in parts."""

    name: str
    digests: tuple[bytes, ...]
    """One for each part."""
    log: bytes
    number: int
    seal: bytes

    @property
    def at(self) -> Position:
        return Position(self.log, self.number, self.seal)


@dataclass(frozen=True, slots=True)
class View:
    """The log at one moment."""

    head: Position
    settled: int
    """Records up to this one are known to be on Redis's disk."""
    checkpoint: Checkpoint | None
    bytes: int
    """Of the records since the last checkpoint."""


class RedisLog:
    """One namespace's log."""

    def __init__(self, link: RedisLink, namespace: str) -> None:
        self._link = link
        self._prefix = f"{namespace}:catalog:{{{namespace}}}"
        self._facts, self._log = f"{self._prefix}:facts", f"{self._prefix}:log"

    def look(self, timeout_s: float | None = None) -> View | None:
        """One round trip; None if there is no log.

        Raises: CWM-4004 if what is there makes no sense; CWM-1003 for a server that can't keep a log.
        """
        names = ("log", "head", "settled", "checkpoint", "bytes")
        found = self._link.call("HMGET", self._facts, *names, timeout_s=timeout_s, repeatable=True)
        # After the first call: only then the link is at the node that has the keys.
        self._link.server()
        if not any(found):
            return None
        try:
            log, head, settled, checkpoint, size = found
            number, seal = head.split(b" ")
            position = Position(_unhex(log), int(number), _unhex(seal))
            if _head(position).encode() != head:
                raise ValueError("a number that is written otherwise")
            return View(position, int(settled), _checkpoint(checkpoint), int(size))
        except (AttributeError, ValueError, TypeError, msgspec.DecodeError):
            raise damaged("its facts can't be read") from None

    def create(self) -> None:
        """A new log, unless there is one."""
        at = beginning()
        self._link.call("EVAL", _CREATE, 2, self._facts, self._log, at.log.hex(), _head(at))

    def read(self, base: Position) -> Sequence[Record]:
        """The next records behind `base`, as many as fit one call.

        Raises: CWM-4004 if they are not what follows; `Trimmed` if what follows is in a checkpoint only.
        """
        entries = self._link.call("XRANGE", self._log, f"{base.number + 1}-0", "+", "COUNT", _READ_COUNT)
        records = []
        for number, fields in entries:
            if number != b"%d-0" % (base.number + 1):
                raise Trimmed(base)
            record = opened(base, *_entry(fields))
            records.append(record)
            base = record.at
        return records

    def has(self, record: Record) -> bool | None:
        """Whether the log has this record in its place; None if it has none there."""
        place = f"{record.at.number}-0"
        entries = self._link.call("XRANGE", self._log, place, place)
        return _entry(entries[0][1])[0] == record.at.seal if entries else None

    def append(self, base: Position, record: Record) -> bool:
        """In one step: the record goes behind `base` if that is the last one. False, and nothing was done, if not."""
        keys = (self._facts, self._log)
        at = record.at
        heads = (_head(base), at.number, _head(at))
        return bool(self._link.call("EVAL", _APPEND, 2, *keys, base.log.hex(), *heads, at.seal, record.body))

    def settle(self) -> None:
        """Returns once all that was seen or appended over this connection is on Redis's disk."""
        self._link.settle()

    def tell_settled(self, at: Position) -> None:
        """Others may now take the records up to `at` as lasting."""
        self._link.call("EVAL", _SETTLE, 1, self._facts, at.log.hex(), at.number)

    @property
    def settles_at_once(self) -> bool:
        return self._link.server().settles_at_once

    # --- checkpoints ---

    def put_part(self, name: str, number: int, part: bytes) -> None:
        self._link.call("SET", self._part(name, number), part, "EX", UNPUBLISHED_S)

    def part(self, name: str, number: int) -> bytes | None:
        found: bytes | None = self._link.call("GET", self._part(name, number))
        return found

    def publish(self, new: Checkpoint, replaced: Checkpoint | None) -> int | None:
        """In one step: makes `new` the checkpoint and trims the log up to it; returns the trimmed records' bytes. None,
        and nothing was done, if another has replaced `replaced`, or a part is gone."""
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
        self._link.close()


class Trimmed(Exception):
    """The records after a position are no longer in the log."""

    def __init__(self, base: Position) -> None:
        super().__init__(f"record {base.number + 1} is only in a checkpoint")


def damaged(why: str) -> CWMError:
    return CWMError(
        Code.CORRUPT,
        f"the shared catalog in Redis is damaged: {why}; restore Redis from a copy that has it whole",
        reason=why,
    )


def _head(at: Position) -> str:
    return f"{at.number} {at.seal.hex()}"


def _unhex(text: bytes) -> bytes:
    """Raises: ValueError, also for what is written in another way than ours."""
    found = bytes.fromhex(text.decode())
    if found.hex().encode() != text:
        raise ValueError("hexadecimal digits that are written otherwise")
    return found


def _entry(fields: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Seal and body. What is no record has a seal that fits nothing."""
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    return found.get(b"seal", b""), found.get(b"body", b"")


def _sealed(checkpoint: Checkpoint) -> bytes:
    body = msgspec.msgpack.encode(checkpoint)
    return seal_of(checkpoint.seal, body) + body


def _checkpoint(text: bytes | None) -> Checkpoint | None:
    """Raises: msgspec's errors, ValueError."""
    if text is None:
        return None
    checkpoint = msgspec.msgpack.decode(text[16:], type=Checkpoint)
    if _sealed(checkpoint) != text:
        raise ValueError("its seal is another")
    return checkpoint
