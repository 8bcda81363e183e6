"""Prints of computed KV, and when two of them agree.

A print is the digest of the bytes. Where kernels are tuned at each start, as on GPUs, equal engines differ in rounding,
so there a sample of the values follows, `digest~sample`, and two prints agree within a tolerance. Any thread.
"""

import base64
import math
from array import array
from collections.abc import Sequence
from typing import Final

TOLERANCE: Final = 0.03
"""Relative distance of two samples. Rounding in bfloat16 makes less than 0.01, other weights or rotary factors 0.1 and
more."""


def with_sample(digest: str, sample: Sequence[float]) -> str:
    """Return a print that agrees with others within the tolerance."""
    return f"{digest}~{base64.b64encode(array('f', sample).tobytes()).decode()}"


def agree(one: str, other: str) -> bool:
    """Return whether two prints come from equal engines."""
    ours, theirs = _sample(one), _sample(other)
    if one == other or not ours or len(ours) != len(theirs):
        return one == other
    distance = math.dist(ours, theirs)
    return distance <= TOLERANCE * max(math.hypot(*ours), math.hypot(*theirs))


def _sample(canary: str) -> "array[float]":
    values = array("f")
    try:
        values.frombytes(base64.b64decode(canary.partition("~")[2], validate=True))
    except ValueError:
        return array("f")
    return values
