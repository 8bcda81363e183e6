"""Token ids in parts, of which some may still lie in a request's own list. See `parted_run`."""

import sys
import time
from array import array
from bisect import bisect_right
from typing import ClassVar, Final

from cwm_connector.sessions.parted_run import Listed, PartedRun

PACKED_IN_A_STEP: Final = 8192
"""Tokens. vLLM computes no more in a step unless it is told to, so that lists do not pile up."""
_TOKEN_BYTES: Final = 4


class TokenRun(PartedRun["array[int]"]):
    """A run of token ids."""

    __slots__ = ()

    part_length: ClassVar[int] = 4096

    def __init__(self, packed: "array[int] | None" = None) -> None:
        """Take the ids. The caller does not change the array any more."""
        super().__init__()
        if packed is not None:
            for start in range(0, len(packed), self.part_length):
                self._add(self._cut(packed, start, min(start + self.part_length, len(packed))))

    def __getitem__(self, at: slice) -> "array[int]":
        start, end, _ = at.indices(len(self))
        return self.ids(start, end)

    def ids(self, start: int, end: int) -> "array[int]":
        """Return the ids [start, end)."""
        at = bisect_right(self._ends, start)
        if at < len(self._parts) and start <= end <= self._ends[at]:  # within one part, as a block nearly always is
            first = self._ends[at - 1] if at else 0
            return self._ids_of(self._parts[at], start - first, end - first)
        found = array("i")
        for part, first, last in self._pieces(start, end):
            found += self._ids_of(part, first, last)
        return found

    def packed(self) -> "array[int]":
        """Return all ids. Not for the engine thread: packs what lies in lists, and lets that thread run between."""
        while self.pack(self.part_length):
            time.sleep(0)
        return self.ids(0, len(self))

    def _ids_of(self, part: "array[int] | Listed", first: int, last: int) -> "array[int]":
        return self._pack(part.cut(first, last)) if isinstance(part, Listed) else part[first:last]

    def _pack(self, part: Listed) -> "array[int]":
        return array("i", part.source[part.start : part.end])

    def _joined(self, one: "array[int]", other: "array[int]") -> "array[int]":
        return one + other

    def _part_bytes(self, part: "array[int]") -> int:
        return sys.getsizeof(part)

    def _packed_bytes(self, part: Listed) -> int:
        return len(part) * _TOKEN_BYTES
