"""Compare two windows by their tokens, and by their text if vLLM can be asked."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import calls
from cwm_connector.protocol.results import Block
from cwm_mcp.api.operations import Operations

_STRIDE: Final = 4_096


class Passage(msgspec.Struct, frozen=True):
    """A few tokens next to the first difference. `text` is None if vLLM could not be asked."""

    token_ids: list[int]
    text: str | None


class WindowDiff(msgspec.Struct, frozen=True):
    window_a: str
    window_b: str
    common_tokens: int
    """Leading tokens that are the same, exactly."""
    only_a_tokens: int
    only_b_tokens: int
    shared_blocks: int
    """Stored chunks that both refer to."""
    shared_bytes: int
    common_end: Passage
    """The last tokens that both have."""
    next_a: Passage
    next_b: Passage
    text_missing: str | None
    """Why the passages have no text."""


async def diff_windows(operations: Operations, name_a: str, name_b: str, context: int) -> WindowDiff:
    """Compare two windows. Return up to `context` tokens on each side of their first difference.

    Raises: CWM-2002 for a window that isn't there.
    """
    ids_a, ids_b = await operations.token_ids(name_a), await operations.token_ids(name_b)
    chunks, size = await _shared(operations, name_a, name_b)
    common = common_length(ids_a, ids_b)
    passages = [
        list(ids_a[max(0, common - context) : common]),
        list(ids_a[common : common + context]),
        list(ids_b[common : common + context]),
    ]
    texts, missing = await _texts(operations, passages)
    end, next_a, next_b = (Passage(token_ids=ids, text=text) for ids, text in zip(passages, texts, strict=True))
    return WindowDiff(
        window_a=name_a,
        window_b=name_b,
        common_tokens=common,
        only_a_tokens=len(ids_a) - common,
        only_b_tokens=len(ids_b) - common,
        shared_blocks=chunks,
        shared_bytes=size,
        common_end=end,
        next_a=next_a,
        next_b=next_b,
        text_missing=missing,
    )


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading ids are the same. Long runs are compared at once."""
    shorter, start = min(len(one), len(other)), 0
    while start < shorter and one[start : start + _STRIDE] == other[start : start + _STRIDE]:
        start = min(start + _STRIDE, shorter)
    while start < shorter and one[start] == other[start]:
        start += 1
    return start


async def _shared(operations: Operations, name_a: str, name_b: str) -> tuple[int, int]:
    of_a, of_b = await _chunks(operations, name_a), await _chunks(operations, name_b)
    both = of_a.keys() & of_b.keys()
    return len(both), sum(of_a[key].size_bytes for key in both)


async def _chunks(operations: Operations, name: str) -> dict[str, Block]:
    status = await operations.status(calls.StatusArgs(window_name=name, include_blocks=True))
    return {chunk.hash: chunk for chunk in status.blocks or []}


async def _texts(operations: Operations, passages: Sequence[list[int]]) -> tuple[list[str | None], str | None]:
    """Return the passages as text, or None for each and the reason why."""

    async def decoded(ids: list[int]) -> str:
        return await operations.text_of(ids) if ids else ""

    try:
        return [*await asyncio.gather(*map(decoded, passages))], None
    except CWMError as problem:
        return [None] * len(passages), problem.message
