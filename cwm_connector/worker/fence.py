"""Fences: points on a stream of the device that a thread, or another stream, can wait for. Any thread."""

from typing import Final, Protocol


class Fence(Protocol):
    """A point on a stream of the device."""

    def synchronize(self) -> None:
        """Wait until all that was queued before the fence is done."""

    def query(self) -> bool:
        """Return whether all that was queued before the fence is done."""


class Passed:
    """A fence that nobody has to wait for."""

    def synchronize(self) -> None:
        """Return at once."""

    def query(self) -> bool:
        """Return True."""
        return True


PASSED: Final[Fence] = Passed()
