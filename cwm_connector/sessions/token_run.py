"""Token ids, of which a part may still lie in a request's own list.

vLLM keeps a prompt as a list of Python integers. To pack 128,000 of them into 4 bytes each takes three milliseconds, so
a finished request leaves its list here and the engine packs a part of it in each step. vLLM only ever appends to the
list, so that what was computed does not change.

A run is used by one thread. A copy may be handed to another thread.
"""

import sys
import time
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple

PACKED_AT_ONCE: Final = 4096
"""Tokens. It takes a tenth of a millisecond."""
PACKED_IN_A_STEP: Final = 8192
"""Tokens. vLLM computes no more in a step unless it is told to, so that lists do not pile up."""
_TOKEN_BYTES: Final = 4


class _Listed(NamedTuple):
    """A part of a list that nobody changes."""

    source: Sequence[int]
    start: int
    end: int

    def ids(self, start: int, end: int) -> "array[int]":
        return array("i", self.source[self.start + start : min(self.start + end, self.end)])

    def part(self, start: int, end: int) -> "_Listed":
        return _Listed(self.source, min(self.start + start, self.end), min(self.start + end, self.end))


class TokenRun:
    """A run of token ids."""

    __slots__ = ("_parts",)

    def __init__(self, packed: "array[int] | None" = None) -> None:
        """Take the ids. The caller does not use the array any more."""
        self._parts: list[array[int] | _Listed] = [packed] if packed else []

    @classmethod
    def of_list(cls, source: Sequence[int], start: int, end: int) -> "TokenRun":
        """Return the ids [start, end) of a list, and pack them at once if they are few."""
        run = cls()
        if start < end:
            run._parts.append(_Listed(source, start, end))
        if end - start <= PACKED_AT_ONCE:
            run.pack(PACKED_AT_ONCE)
        return run

    def __len__(self) -> int:
        return sum(map(_length, self._parts))

    @property
    def is_packed(self) -> bool:
        """Return whether no token lies in a list."""
        return not any(isinstance(part, _Listed) for part in self._parts)

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the ids take in memory once all of them are packed."""
        return sum(
            _length(part) * _TOKEN_BYTES if isinstance(part, _Listed) else sys.getsizeof(part) for part in self._parts
        )

    def ids(self, start: int, end: int) -> "array[int]":
        """Return the ids [start, end)."""
        found = array("i")
        for part in self._parts:
            length = _length(part)
            if start < length and end > 0:
                first, last = max(0, start), min(end, length)
                found += part.ids(first, last) if isinstance(part, _Listed) else part[first:last]
            start, end = start - length, end - length
        return found

    def part(self, start: int, end: int) -> "TokenRun":
        """Return a copy of [start, end) in which lists stay lists."""
        run = TokenRun()
        for part in self._parts:
            length = _length(part)
            if start < length and end > 0 and start < end:
                first, last = max(0, start), min(end, length)
                run._parts.append(part.part(first, last) if isinstance(part, _Listed) else part[first:last])
            start, end = start - length, end - length
        return run

    def append(self, other: "TokenRun") -> None:
        """Append the ids of another run, which is not used any more."""
        for part in other._parts:
            last = self._parts[-1] if self._parts else None
            if isinstance(last, array) and isinstance(part, array):
                last.extend(part)
            else:
                self._parts.append(part)

    def pack(self, limit: int) -> int:
        """Pack at most `limit` tokens that lie in a list. Return how many it were."""
        at = next((at for at, part in enumerate(self._parts) if isinstance(part, _Listed)), None)
        if at is None:
            return 0
        listed = self._parts[at]
        assert isinstance(listed, _Listed)
        packed = listed.ids(0, limit)
        rest = listed.part(len(packed), _length(listed))
        run = TokenRun()
        parts = [*self._parts[:at], packed, *([rest] if _length(rest) else []), *self._parts[at + 1 :]]
        for part in parts:
            single = TokenRun()
            single._parts.append(part)
            run.append(single)
        self._parts = run._parts
        return len(packed)

    def packed(self) -> "array[int]":
        """Return all ids. Not for the engine thread: packs what lies in lists, and lets that thread run between."""
        while self.pack(PACKED_AT_ONCE):
            time.sleep(0)
        return self.ids(0, len(self)) if len(self._parts) != 1 else self._parts[0]  # type: ignore[return-value]


def _length(part: "array[int] | _Listed") -> int:
    return part.end - part.start if isinstance(part, _Listed) else len(part)
