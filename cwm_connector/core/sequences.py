"""Comparison of sequences: texts or token ids."""

from collections.abc import Sequence


def common_end_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many of the last items of two sequences are the same."""
    length = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        length += 1
    return length
