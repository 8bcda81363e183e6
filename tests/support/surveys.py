"""Take a whole survey at once, which the engine takes over several steps."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

T = TypeVar("T")


def everything(parts: Iterator[Sequence[T]]) -> list[T]:
    """Return the items of all parts."""
    return list(chain.from_iterable(parts))
