"""A run of items in parts of bounded length, of which some may still lie in a request's own list.

A part never changes. To cut, join or copy a long run therefore moves references to parts and copies at most the two
parts at its ends. vLLM keeps the tokens and the block hashes of a request as lists of objects. To pack a long list
takes milliseconds, so it is left as it is and packed a part at a time. vLLM only ever appends to these lists, so that
what was computed does not change.

A run is used by one thread. A copy may be handed to another thread.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Generic, Self, TypeVar

P = TypeVar("P", bound="Sequence[Any]")


@dataclass(frozen=True, slots=True)
class Listed:
    """A part of a list that nobody changes."""

    source: Sequence[Any] = field(repr=False)
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def cut(self, start: int, end: int) -> "Listed":
        """Return the items [start, end) of the part."""
        return Listed(self.source, self.start + start, self.start + end)


class PartedRun(ABC, Generic[P]):
    """A run of items. `P` is a packed part."""

    __slots__ = ("_ends", "_parts")

    part_length: ClassVar[int]
    """Items in one part at most. To pack so many takes about a tenth of a millisecond."""

    def __init__(self) -> None:
        self._parts: list[P | Listed] = []
        self._ends: list[int] = []
        """Where each part ends in the run."""

    @classmethod
    def of_list(cls, source: Sequence[Any], start: int, end: int) -> Self:
        """Return the items [start, end) of a list, and pack them at once if they are few."""
        run = cls()
        run._add(Listed(source, start, max(start, end)))
        if len(run) <= cls.part_length:
            run.pack(cls.part_length)
        return run

    @classmethod
    def of_runs(cls, runs: Iterable[Self]) -> Self:
        """Return the parts of several runs, one run after the other. Nothing is copied, so short parts stay short."""
        run = cls()
        for each in runs:
            run._parts += each._parts
        run._ends = list(accumulate(map(len, run._parts)))
        return run

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def is_packed(self) -> bool:
        """Return whether no item lies in a list."""
        return not any(isinstance(part, Listed) for part in self._parts)

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the items take in memory once all of them are packed."""
        return sum(
            self._packed_bytes(part) if isinstance(part, Listed) else self._part_bytes(part) for part in self._parts
        )

    def part(self, start: int, end: int) -> Self:
        """Return a copy of [start, end) in which lists stay lists."""
        run = type(self)()
        for part, first, last in self._pieces(start, end):
            run._add(self._cut(part, first, last))
        return run

    def append(self, other: Self) -> None:
        """Append the items of another run."""
        for part in other._parts:
            self._add(part)

    def pack(self, limit: int) -> int:
        """Pack at most `limit` items that lie in a list. Return how many it were."""
        packed = 0
        at = 0
        while packed < limit and at < len(self._parts):
            part = self._parts[at]
            if isinstance(part, Listed):
                count = min(len(part), self.part_length, limit - packed)
                self._pack_first(at, part, count)
                packed += count
            at += 1
        return packed

    # --- inside ---

    @abstractmethod
    def _pack(self, part: Listed) -> P:
        """Return the items of a part of a list, packed."""

    @abstractmethod
    def _joined(self, one: P, other: P) -> P:
        """Return two parts as one."""

    @abstractmethod
    def _part_bytes(self, part: P) -> int:
        """Return the bytes that a packed part takes in memory."""

    @abstractmethod
    def _packed_bytes(self, part: Listed) -> int:
        """Return the bytes that a part of a list will take."""

    def _cut(self, part: P | Listed, start: int, end: int) -> P | Listed:
        if start == 0 and end == len(part):
            return part
        return part.cut(start, end) if isinstance(part, Listed) else part[start:end]  # type: ignore[return-value]

    def _pieces(self, start: int, end: int) -> Iterator[tuple[P | Listed, int, int]]:
        """Yield the parts with items of [start, end), each with the positions in it at which they begin and end."""
        at = bisect_right(self._ends, start)
        first = self._ends[at - 1] if at else 0
        while max(start, first) < end and at < len(self._parts):
            last = self._ends[at]
            yield self._parts[at], max(0, start - first), min(end, last) - first
            first, at = last, at + 1

    def _add(self, part: P | Listed) -> None:
        if not len(part):
            return
        last = self._parts[-1] if self._parts else None
        if last is None or isinstance(last, Listed) or isinstance(part, Listed) or not self._fits(last, part):
            self._parts.append(part)
            self._ends.append(len(self) + len(part))
        else:
            self._parts[-1] = self._joined(last, part)
            self._ends[-1] += len(part)

    def _fits(self, one: P, other: P) -> bool:
        return len(one) + len(other) <= self.part_length

    def _pack_first(self, at: int, part: Listed, count: int) -> None:
        """Pack the first `count` items of the part at `at`."""
        self._parts[at] = self._pack(part.cut(0, count))
        if count < len(part):
            self._parts.insert(at + 1, part.cut(count, len(part)))
            self._ends.insert(at, self._ends[at] - len(part) + count)
