"""The identity of KV: the passport of an engine's KV and the content address of each chunk.

The key of a chunk is SHA-256(parent's key, the chunk's token ids). The parent of the first chunk is the fingerprint of
the passport. Equal keys therefore mean equal tokens from position 0 on, computed with equal weights and layout. The
cache salt and the session are not part of the key, so clones and sessions share chunks. vLLM's own block hashes are not
used, because they change with its version, seed and salt.

Pure functions for any thread. Nothing here blocks.
"""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cwm_connector.core.canary import agree
from cwm_connector.core.types import ChunkKey

FORMAT_VERSION = 1
"""The version of the chunk format. Increase it when the payload's byte order or the key chain changes."""

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


@dataclass(frozen=True)
class Passport:
    """The properties that two engines must have in common before one may load the other's KV."""

    fields: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> bytes:
        """Return the SHA-256 of all fields, 32 bytes."""
        return hashlib.sha256(json.dumps(dict(self.fields), sort_keys=True).encode()).digest()

    def first_difference(self, other: Mapping[str, str]) -> tuple[str, str, str] | None:
        """Return the first of the differences, or None if all fields agree."""
        return next(self.differences(other), None)

    def differences(self, other: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
        """Yield the name, our value and the other value of each field that differs.

        The order is that of our fields, because different weights say more than the different configuration that often
        comes with them. `ADDED_LATER` says what a lacking field counts as.
        """
        for name in dict.fromkeys([*self.fields, *other]):
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

    @property
    def end_block(self) -> int:
        """Return the index of the block after its last one."""
        return self.first_block + self.blocks


@dataclass(frozen=True, slots=True)
class Geometry:
    """How tokens are divided: `block_tokens` in each block of vLLM, `blocks_per_chunk` blocks in each chunk."""

    block_tokens: int
    blocks_per_chunk: int

    @classmethod
    def of(cls, block_tokens: int, chunk_tokens: int) -> "Geometry":
        """Return the geometry whose chunks cover at least `chunk_tokens`, in whole blocks."""
        return cls(block_tokens, -(-chunk_tokens // block_tokens))

    def chunk_starts(self, blocks: int) -> Iterator[tuple[int, int]]:
        """Yield (first block, number of blocks) for each chunk of a sequence. The last chunk may be shorter."""
        for start in range(0, blocks, self.blocks_per_chunk):
            yield start, min(self.blocks_per_chunk, blocks - start)


def chunk_specs(passport: Passport, geometry: Geometry, token_ids: "array[int]") -> tuple[ChunkSpec, ...]:
    """Return the chunks that cover all full blocks of `token_ids` (int32)."""
    key = passport.fingerprint
    data = memoryview(token_ids).cast("B")
    block_bytes = geometry.block_tokens * token_ids.itemsize
    specs = []
    for start, count in geometry.chunk_starts(len(token_ids) // geometry.block_tokens):
        tokens = data[start * block_bytes : (start + count) * block_bytes]
        key = hashlib.sha256(b"cwm-chunk-1" + key + tokens).digest()
        specs.append(ChunkSpec(ChunkKey(key), start, count))
    return tuple(specs)


def specs_of(geometry: Geometry, keys: Sequence[ChunkKey], tokens: Sequence[int]) -> tuple[ChunkSpec, ...]:
    """Return the chunks of a window from what the catalog lists: their keys and the number of tokens in each."""
    blocks = [count // geometry.block_tokens for count in tokens]
    starts = itertools.accumulate(blocks, initial=0)
    return tuple(ChunkSpec(key, start, count) for key, start, count in zip(keys, starts, blocks, strict=False))
