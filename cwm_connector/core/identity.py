"""The identity of KV: the passport of an engine's KV and the content address of each chunk.

The key of a chunk is SHA-256(parent's key, the chunk's token ids, its images). The parent of the first chunk is the
fingerprint of the passport and the adapter. Equal keys therefore mean equal content from position 0 on, computed with
equal weights and layout. The cache salt and the session are not part of the key, so clones and sessions share chunks.
vLLM's own block hashes are not used, because they change with its version, seed and salt.

A model with several kinds of attention has a chain of its own, which `Geometry.groups` describes:

    tokens           0         256        512   600       856     1,000
    full attention   |  chunk  |  chunk  |  chunk | chunk | chunk  |        shared, as the chunks of other models
    other groups                                 tail             tail      one chunk for each group and boundary

A tail holds what a resume at its boundary needs of one group. In the list of a window it follows the chunk that ends
there and counts 0 tokens, and so does the chunk of a second group with full attention. The key of each is that of all
tokens before its end, so equal tails are stored once, wherever else their windows are cut.

Pure functions for any thread. Nothing here blocks.
"""

import base64
import hashlib
import itertools
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cwm_connector.core.groups import CacheGroup, GroupKind
from cwm_connector.core.keys.extras import EXTRA_FIELDS, ITEMS, Extras
from cwm_connector.core.types import ChunkKey

FORMAT_VERSION = 1
"""The version of the chunk format. Increase it when the payload's byte order or the key chain changes."""

TOLERANCE: Final = 0.03
"""Relative distance of two samples. Rounding in bfloat16 makes less than 0.01, other weights or rotary factors 0.1 and
more."""

ABSENT: Final = "absent"
"""Stands for the value of a field that a passport lacks."""
ADDED_LATER: Final[Mapping[str, str | None]] = {
    "rotary": "as configured",
    "model_impl": "vllm",
    "quantization_options": "default",
    "cache_skip_layers": "none",
    "mamba_cache": "none",
    "groups": None,
    "drafter": None,
    "drafter_weights": None,
    "attention_options": "default",
    "moe_backend": "auto",
    "linear_backend": "auto",
    "compilation": None,
    "batch_invariant": "False",
    "canary": None,
}
"""Fields that older windows lack, each with its value in an engine without special options. A lacking field counts as
that value. None: a lacking field is not compared, because other fields decide or only rounding depends on it.
"""


def with_sample(digest: str, *samples: Sequence[float]) -> str:
    """Return a print of computed KV, `digest~sample,sample`, that agrees with others within the tolerance."""
    return f"{digest}~{','.join(base64.b64encode(array('f', each).tobytes()).decode() for each in samples)}"


def agree(one: str, other: str) -> bool:
    """Return whether two prints come from equal engines. Each sample has to agree, however small its numbers are."""
    ours, theirs = _samples(one), _samples(other)
    if one == other or not any(ours) or list(map(len, ours)) != list(map(len, theirs)):
        return one == other
    return all(map(_are_close, ours, theirs))


def _are_close(one: "array[float]", other: "array[float]") -> bool:
    return math.dist(one, other) <= TOLERANCE * max(math.hypot(*one), math.hypot(*other))


def _samples(canary: str) -> "list[array[float]]":
    try:
        parts = [base64.b64decode(part, validate=True) for part in canary.partition("~")[2].split(",")]
        return [array("f", part) for part in parts]
    except ValueError:
        return []


@dataclass(frozen=True)
class Passport:
    """The properties that two engines must have in common before one may load the other's KV.

    The passport of a window also has the extras of its tokens. Engines are compared without them.
    """

    fields: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> bytes:
        """Return the SHA-256 of all fields but the items, which are part of the chunks that they overlap. 32 bytes."""
        fields = {name: value for name, value in self.fields.items() if name != ITEMS}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()

    @cached_property
    def extras(self) -> Extras:
        """Return the extras of a window's tokens. Raises: ValueError for fields that can't be read."""
        return Extras.of_passport(self.fields)

    @property
    def of_engine(self) -> "Passport":
        """Return the passport of the engine that computed the window."""
        return Passport({name: value for name, value in self.fields.items() if name not in EXTRA_FIELDS})

    def carrying(self, extras: Extras) -> "Passport":
        """Return the passport of a window of this engine whose tokens have these extras."""
        more = extras.fields()
        return Passport({**self.fields, **more}) if more else self

    def first_difference(self, other: Mapping[str, str]) -> tuple[str, str, str] | None:
        """Return the first of the differences, or None if all fields agree."""
        return next(self.differences(other), None)

    def differences(self, other: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
        """Yield the name, our value and the other value of each field that differs.

        The order is that of our fields, because different weights say more than the different configuration that often
        comes with them. `ADDED_LATER` says what a lacking field counts as.
        """
        for name in dict.fromkeys([*self.fields, *other]):
            if name in EXTRA_FIELDS:
                continue  # the requests decide, and not the engine
            ours, theirs = self.fields.get(name), other.get(name)
            assumed = ADDED_LATER.get(name, ABSENT)
            if ours == theirs or (assumed is None and None in (ours, theirs)):
                continue
            if name == "canary" and agree(ours or "", theirs or ""):
                continue
            if (assumed if ours is None else ours) != (assumed if theirs is None else theirs):
                yield name, ours or ABSENT, theirs or ABSENT


@dataclass(frozen=True, slots=True)
class ChunkSpec:
    """A chunk of a sequence: its key and the whole blocks of vLLM that it covers."""

    key: ChunkKey
    first_block: int
    """The index of its first block within the sequence."""
    blocks: int
    """0 for a chunk that adds no tokens to its window. It ends at `first_block` then."""
    group: int = 0
    """The KV cache group of its pages."""
    pages: int | None = None
    """How many of vLLM's blocks it holds, up to its end, unless they are those of the sequence."""

    @property
    def end_block(self) -> int:
        """Return the index of the block after its last one."""
        return self.first_block + self.blocks

    @property
    def page_count(self) -> int:
        """Return how many of vLLM's blocks it holds."""
        return self.blocks if self.pages is None else self.pages

    @property
    def usable_without(self) -> int:
        """Return how many leading blocks of its window can be used if this chunk is lost."""
        return self.first_block if self.blocks else self.first_block - 1


@dataclass(frozen=True)
class Geometry:
    """How tokens are divided: `block_tokens` in each block, `blocks_per_chunk` blocks in each chunk."""

    block_tokens: int
    """A block is vLLM's, or the distance between two boundaries of a model with several kinds of attention."""
    blocks_per_chunk: int
    groups: tuple[CacheGroup, ...] = ()
    """The KV cache groups of a model that can be resumed at boundaries alone. Empty: it can be at every block."""

    @classmethod
    def of(cls, block_tokens: int, chunk_tokens: int, groups: tuple[CacheGroup, ...] = ()) -> "Geometry":
        """Return the geometry whose chunks cover at least `chunk_tokens`, in whole blocks."""
        return cls(block_tokens, -(-chunk_tokens // block_tokens), groups)

    @property
    def chunk_tokens(self) -> int:
        """Return the tokens of a whole chunk."""
        return self.blocks_per_chunk * self.block_tokens

    @cached_property
    def full_groups(self) -> tuple[int, ...]:
        """Return the groups with full attention, whose chunks cover all tokens."""
        return tuple(index for index, group in enumerate(self.groups) if group.kind is GroupKind.FULL)

    def group_of_pages(self, page_tokens: int) -> int:
        """Return a group with pages of so many tokens, one with full attention if there is one. 0 if there is none."""
        fitting = [index for index, group in enumerate(self.groups) if group.page_tokens == page_tokens]
        return next((index for index in fitting if index in self.full_groups), fitting[0] if fitting else 0)

    def tails(self, end_block: int) -> Iterator[tuple[int, int]]:
        """Yield (group, pages) for each tail that a resume at this block needs."""
        for index, group in enumerate(self.groups):
            if group.kind is not GroupKind.FULL and (pages := group.pages_at(end_block * self.block_tokens)):
                yield index, pages

    def pages_of(self, group: int, blocks: int) -> int:
        """Return how many pages of a group lie in so many blocks."""
        return blocks * self.block_tokens // self.groups[group].page_tokens

    def chunk_starts(self, blocks: int) -> Iterator[tuple[int, int]]:
        """Yield (first block, number of blocks) for each chunk of a sequence. The last chunk may be shorter."""
        for start in range(0, blocks, self.blocks_per_chunk):
            yield start, min(self.blocks_per_chunk, blocks - start)


def chunk_specs(passport: Passport, geometry: Geometry, token_ids: "array[int]") -> tuple[ChunkSpec, ...]:
    """Return the chunks that cover all full blocks of `token_ids` (int32).

    Of a model with several kinds of attention these are the chunks alone, without tails.
    """
    if geometry.groups:
        return tuple(spec for spec in window_chunks(passport, geometry, token_ids) if spec.blocks)
    key = passport.fingerprint
    data = memoryview(token_ids).cast("B")
    block_bytes = geometry.block_tokens * token_ids.itemsize
    specs = []
    for start, count in geometry.chunk_starts(len(token_ids) // geometry.block_tokens):
        tokens = data[start * block_bytes : (start + count) * block_bytes]
        items = passport.extras.within(start * geometry.block_tokens, (start + count) * geometry.block_tokens)
        kind = b"cwm-chunk-3" + hashlib.sha256(items).digest() if items else b"cwm-chunk-1"
        key = hashlib.sha256(kind + key + tokens).digest()
        specs.append(ChunkSpec(ChunkKey(key), start, count))
    return tuple(specs)


def window_chunks(
    passport: Passport, geometry: Geometry, token_ids: "array[int]", boundaries: Sequence[int] = ()
) -> tuple[ChunkSpec, ...]:
    """Return all chunks of a window over the full blocks of `token_ids` (int32).

    A model with several kinds of attention can be resumed at each of the `boundaries`, in blocks, and its window ends
    at the last of them. Without any, there is one, after the last full block.
    """
    if not geometry.groups:
        return chunk_specs(passport, geometry, token_ids)
    ends = sorted(set(boundaries)) or [len(token_ids) // geometry.block_tokens]
    hasher, hashed = hashlib.sha256(b"cwm-tokens-2" + passport.fingerprint), 0
    data = memoryview(token_ids).cast("B")
    block_bytes = geometry.block_tokens * token_ids.itemsize
    specs: list[ChunkSpec] = []
    for start, end in itertools.pairwise(_cuts(geometry, ends)):
        hasher.update(data[hashed * block_bytes : end * block_bytes])
        hashed, prefix = end, hasher.digest()
        if items := passport.extras.within(0, end * geometry.block_tokens):
            prefix = hashlib.sha256(b"cwm-items-3" + prefix + items).digest()
        for group in geometry.full_groups:
            is_first = group == geometry.full_groups[0]
            first, blocks = (start, end - start) if is_first else (end, 0)
            pages = geometry.pages_of(group, end - start)
            specs.append(ChunkSpec(_part_key(prefix, b"chunk", group, start), first, blocks, group, pages))
        for group, pages in geometry.tails(end) if end in ends else ():
            first, blocks = (end, 0) if specs else (0, end)
            specs.append(ChunkSpec(_part_key(prefix, b"tail", group, 0), first, blocks, group, pages))
    return tuple(specs)


def _cuts(geometry: Geometry, ends: Sequence[int]) -> list[int]:
    """Return where a window is cut. A model without full attention has no chunks, so its one tail counts all tokens."""
    if not geometry.full_groups:
        return [0, ends[-1]] if ends[-1] else [0]
    return sorted({*range(0, ends[-1], geometry.blocks_per_chunk), *ends, 0})


def _part_key(prefix: bytes, kind: bytes, group: int, start: int) -> ChunkKey:
    place = group.to_bytes(4, "little") + start.to_bytes(8, "little")
    return ChunkKey(hashlib.sha256(b"cwm-part-2" + kind + place + prefix).digest())


def specs_of(geometry: Geometry, keys: Sequence[ChunkKey], tokens: Sequence[int]) -> tuple[ChunkSpec, ...]:
    """Return the chunks of a window from what the catalog lists: their keys and the number of tokens in each."""
    if geometry.groups:
        return tuple(_listed_specs(geometry, keys, tokens))
    blocks = [count // geometry.block_tokens for count in tokens]
    starts = itertools.accumulate(blocks, initial=0)
    return tuple(ChunkSpec(key, start, count) for key, start, count in zip(keys, starts, blocks, strict=False))


def _listed_specs(geometry: Geometry, keys: Sequence[ChunkKey], tokens: Sequence[int]) -> Iterator[ChunkSpec]:
    """Yield the chunks of a list in which each chunk that counts tokens is followed by those that count none."""
    parts: list[tuple[int, int]] = []
    first = 0
    for key, count in zip(keys, tokens, strict=True):
        if blocks := count // geometry.block_tokens:
            end = first + blocks
            chunks = [(group, geometry.pages_of(group, blocks)) for group in geometry.full_groups]
            parts = [*chunks, *geometry.tails(end)]
            group, pages = parts.pop(0)
            yield ChunkSpec(key, first, blocks, group, pages)
            first = end
        else:
            group, pages = parts.pop(0)
            yield ChunkSpec(key, first, 0, group, pages)


def why_not_all(geometry: Geometry, tokens: int, resumable: int) -> str | None:
    """Return why a window of so many tokens can't be resumed after all of them, or None if it can, to the block."""
    if not geometry.groups or tokens == resumable:
        return None
    size = geometry.block_tokens
    if tokens - resumable < size:
        return f"this model can be resumed every {size} tokens"
    return f"this model can be resumed every {size} tokens, where vLLM keeps the state of every layer"


def boundaries_of(geometry: Geometry, chunks: Sequence[ChunkSpec]) -> tuple[int, ...]:
    """Return the blocks at which a window of these chunks can be resumed. Empty: at each of its blocks."""
    if not geometry.groups:
        return ()
    there: dict[int, int] = {}
    for chunk in chunks:
        there[chunk.end_block] = there.get(chunk.end_block, 0) + 1
    full = len(geometry.full_groups)
    return tuple(end for end, count in there.items() if count == full + len(tuple(geometry.tails(end))))
