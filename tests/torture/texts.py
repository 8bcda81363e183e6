"""What sessions say: token ids that a few numbers stand for, so that a line through a pipe carries a whole session."""

import hashlib
from array import array
from collections.abc import Iterable
from typing import NamedTuple

from tests.support.vllm_parts import BLOCK_TOKENS


class Run(NamedTuple):
    """`length` consecutive ids from `first` on."""

    first: int
    length: int


Text = tuple[Run, ...]


def ids_of(text: Text) -> list[int]:
    return [token for run in text for token in range(run.first, run.first + run.length)]


def tokens_of(text: Text) -> int:
    return sum(run.length for run in text)


def restorable(text: Text) -> int:
    """Tokens in full blocks: what a window of this text brings back."""
    return tokens_of(text) // BLOCK_TOKENS * BLOCK_TOKENS


def fingerprint(ids: Iterable[int]) -> str:
    return hashlib.sha256(array("i", ids).tobytes()).hexdigest()


def cut_to(text: Text, tokens: int) -> Text:
    """The text's beginning."""
    kept = []
    for run in text:
        if tokens > 0:
            kept.append(Run(run.first, min(run.length, tokens)))
            tokens -= run.length
    return tuple(kept)
