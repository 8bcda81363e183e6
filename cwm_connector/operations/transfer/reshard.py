"""`cwm import --reshard`: divides a window's KV over another number of ranks than it was computed on.

    parts of n ranks -> every token's heads in order, `[tokens, layers, heads]` -> parts of m ranks

A cell is the key and the value of one token in one head. Cells are moved and never changed, so the way back gives the
same bytes. The CPU build packs the keys of a block within each head. There a cell is a part of that pack, and moving it
there and back leaves the pack as it was, because both engines have the same layout.

Pure functions for any thread. They take as long as copying the bytes a few times.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.groups import HeadShape

_OF_RANKS: Final = ("tensor_parallel", "canary")
"""Fields of the passport that differ between engines of the same model with other numbers of ranks."""


def resharded(parts: Sequence[memoryview], blocks: int, shape: HeadShape, ranks: int) -> list[bytes]:
    """Return the payloads of one chunk for so many ranks, from those of all ranks that computed it."""
    by_token = token_major(parts, blocks, shape)
    return [_payload(by_token[:, :, _span(shape, rank, ranks)], blocks, shape) for rank in range(ranks)]


def token_major(parts: Sequence[memoryview], blocks: int, shape: HeadShape) -> Any:
    """Return all ranks' cells as an array `[tokens, layers, heads]`. Of equal copies of a head the first is taken."""
    ranks = len(parts)
    cell: Any = np.dtype(f"V{shape.cell_bytes}")
    cells: Any = np.empty((blocks * shape.block_tokens, shape.layers, shape.heads), cell)
    for rank in reversed(range(ranks)):
        own = _span(shape, rank, ranks)
        count = own.stop - own.start
        pages = np.frombuffer(parts[rank], cell).reshape(shape.layers, blocks, *_page(shape, count))
        cells[:, :, own] = pages.transpose(_TO_TOKENS[shape.tokens_first]).reshape(-1, shape.layers, count)
    return cells


def require_reshardable(shape: HeadShape | str, theirs: Mapping[str, str], ranks: int) -> HeadShape:
    """Return the shape if the KV of so many ranks can be divided anew. `shape` may be the reason why it can't.

    Raises: `Code.STATE` for a model whose KV has other parts than heads, `Code.ARGUMENT` for an uneven number of ranks.
    """
    if isinstance(shape, str):
        raise CWMError(
            Code.STATE, f"a window of this model can't be resharded, because {shape}; serve it with {ranks} ranks"
        )
    if theirs.get("pipeline_parallel", "1") != "1":
        raise CWMError(
            Code.STATE,
            "a window that was computed with pipeline parallelism can't be resharded; serve the model as it was then",
        )
    if not shape.can_be_on(ranks):
        raise CWMError(Code.ARGUMENT, f"{shape.heads} heads can't be divided over {ranks} ranks; use another file")
    return shape


def expected_passport(theirs: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return their passport as it would be on our ranks. Whatever else differs still makes the window unusable.

    The canary is left to ours, because a print is that of one number of ranks.
    """
    changed = {name: ours[name] for name in _OF_RANKS if name in ours}
    fields = {name: value for name, value in theirs.items() if name not in _OF_RANKS} | changed
    name, _, known = ours.get("layout", "").rpartition(":")
    if known and theirs.get("layout", "").rpartition(":")[0] == name:
        fields["layout"] = ours["layout"]
    return fields


# --- internal --------------------------------------------------------------------------------------------------------

_TO_TOKENS: Final = {True: (1, 2, 0, 3), False: (1, 3, 0, 2)}
"""`[layers, blocks, tokens, heads]` or `[layers, blocks, heads, tokens]` -> `[blocks, tokens, layers, heads]`."""
_TO_PAGES: Final = {True: (2, 0, 1, 3), False: (2, 0, 3, 1)}


def _page(shape: HeadShape, heads: int) -> tuple[int, int]:
    return (shape.block_tokens, heads) if shape.tokens_first else (heads, shape.block_tokens)


def _span(shape: HeadShape, rank: int, ranks: int) -> slice:
    own = shape.heads_on(rank, ranks)
    return slice(own.start, own.stop)


def _payload(cells: Any, blocks: int, shape: HeadShape) -> bytes:
    pages = cells.reshape(blocks, shape.block_tokens, shape.layers, -1).transpose(_TO_PAGES[shape.tokens_first])
    return bytes(np.ascontiguousarray(pages).tobytes())
