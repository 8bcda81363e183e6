"""vLLM's block hashes in parts, of which some may still lie in a request's own list. See `parted_run`."""

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import ClassVar, Final, overload

import numpy as np

from cwm_connector.sessions.parted_run import Listed, PartedRun

_END_BYTES: Final = 4


class PackedHashes(Sequence[bytes]):
    """Hashes stored end to end. A list would take more than twice as much memory. They do not change."""

    __slots__ = ("_ends", "_joined")

    def __init__(self, joined: bytes, ends: "array[int]") -> None:
        """Take the joined hashes and where each of them ends."""
        self._joined = joined
        self._ends = ends

    @classmethod
    def of(cls, hashes: Sequence[bytes]) -> "PackedHashes":
        """Return the hashes, packed."""
        lengths = np.fromiter(map(len, hashes), dtype=np.uint32, count=len(hashes))
        return cls(b"".join(hashes), _array(np.cumsum(lengths, dtype=np.uint32)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> "PackedHashes": ...

    def __getitem__(self, at: int | slice) -> "bytes | PackedHashes":
        ends = self._ends
        if isinstance(at, int):
            return self._joined[ends[at - 1] if at else 0 : ends[at]]
        start, end, _ = at.indices(len(ends))
        first, last = ends[start - 1] if start else 0, ends[end - 1] if end else 0
        cut = np.frombuffer(ends, dtype=np.uint32)[start:end] - np.uint32(first)
        return PackedHashes(self._joined[first:last], _array(cut))

    def __add__(self, other: "PackedHashes") -> "PackedHashes":
        ends = np.frombuffer(other._ends, dtype=np.uint32) + np.uint32(len(self._joined))
        return PackedHashes(self._joined + other._joined, self._ends + _array(ends))

    def between(self, start: int, end: int) -> Iterable[bytes]:
        """Return the hashes [start, end)."""
        ends = self._ends[start:end].tolist()
        starts = [self._ends[start - 1] if start else 0, *ends[:-1]]
        return map(self._joined.__getitem__, map(slice, starts, ends))

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the hashes take in memory."""
        return sys.getsizeof(self._joined) + sys.getsizeof(self._ends)


class HashRun(PartedRun[PackedHashes], Sequence[bytes]):
    """A run of block hashes."""

    __slots__ = ()

    part_length: ClassVar[int] = 512

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[bytes, ...]: ...

    def __getitem__(self, at: int | slice) -> bytes | tuple[bytes, ...]:
        if isinstance(at, slice):
            start, end, _ = at.indices(len(self))
            return self.between(start, end)
        position = at + len(self) if at < 0 else at
        index = bisect_right(self._ends, position)
        part = self._parts[index]
        position -= self._ends[index - 1] if index else 0
        return part.source[part.start + position] if isinstance(part, Listed) else part[position]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.between(0, len(self)))

    def between(self, start: int, end: int) -> tuple[bytes, ...]:
        """Return the hashes [start, end)."""
        found: list[bytes] = []
        for part, first, last in self._pieces(start, end):
            if isinstance(part, Listed):
                found += part.source[part.start + first : part.start + last]
            else:
                found += part.between(first, last)
        return tuple(found)

    def copy(self) -> "HashRun":
        """Return a copy that does not change any more."""
        return self.part(0, len(self))

    def _pack(self, part: Listed) -> PackedHashes:
        return PackedHashes.of(part.source[part.start : part.end])

    def _joined(self, one: PackedHashes, other: PackedHashes) -> PackedHashes:
        return one + other

    def _part_bytes(self, part: PackedHashes) -> int:
        return part.size_bytes

    def _packed_bytes(self, part: Listed) -> int:
        return len(part) * (len(part.source[part.start]) + _END_BYTES)


class ChainHashes(Sequence[bytes]):
    """The hashes of a whole chain, over the runs of its nodes."""

    __slots__ = ("_runs", "_starts", "_total")

    def __init__(self, runs: Sequence[HashRun]) -> None:
        self._runs = runs
        *self._starts, self._total = accumulate(map(len, runs), initial=0)

    def __len__(self) -> int:
        return self._total

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[bytes, ...]: ...

    def __getitem__(self, at: int | slice) -> bytes | tuple[bytes, ...]:
        if isinstance(at, slice):
            start, end, _ = at.indices(self._total)
            return self._between(start, end)
        if not -self._total <= at < self._total:
            raise IndexError(at)
        position = at % self._total
        run = bisect_right(self._starts, position) - 1
        return self._runs[run][position - self._starts[run]]

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self._runs)

    def _between(self, start: int, end: int) -> tuple[bytes, ...]:
        found: tuple[bytes, ...] = ()
        run = max(0, bisect_right(self._starts, start) - 1)
        while run < len(self._runs) and self._starts[run] < end:
            first = self._starts[run]
            found += self._runs[run].between(max(0, start - first), end - first)
            run += 1
        return found


def _array(ends: "np.ndarray[tuple[int], np.dtype[np.uint32]]") -> "array[int]":
    packed = array("I")
    packed.frombytes(ends.tobytes())
    return packed
