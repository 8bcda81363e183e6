"""What KV is and when it is valid: the passport of an engine's KV, and the content address of every chunk.

Key of a chunk = SHA-256(parent's key, the chunk's token ids), where the first chunk's parent is the passport's
fingerprint. So equal keys mean equal tokens from position 0 on, under equal weights and layout; the cache salt and the
session are no part of it, which lets clones and sessions share chunks. vLLM's own block hashes are not used: they
change with its version, seed and salt.
"""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cwm_connector.core.types import ChunkKey

FORMAT_VERSION = 1
"""Raised whenever the payload's byte order or the key chain changes."""


@dataclass(frozen=True)
class Passport:
    """Everything that must agree before one engine's KV may be put into another's memory."""

    fields: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes over all fields."""
        return hashlib.sha256(json.dumps(dict(self.fields), sort_keys=True).encode()).digest()

    def first_difference(self, other: Mapping[str, str]) -> tuple[str, str, str] | None:
        """The first field in which `other` differs: its name, our value, the other's; None if all agree.

        In the order of our fields: other weights say more than the other configuration that often comes with them.
        """
        for name in dict.fromkeys([*self.fields, *other]):
            ours, theirs = self.fields.get(name, "absent"), other.get(name, "absent")
            if ours != theirs:
                return name, ours, theirs
        return None


@dataclass(frozen=True, slots=True)
class ChunkSpec:
    """A chunk by content: its key and how many whole blocks of tokens it covers."""

    key: ChunkKey
    first_block: int
    """Index, within the sequence, of its first block."""
    blocks: int

    @property
    def end_block(self) -> int:
        return self.first_block + self.blocks


@dataclass(frozen=True, slots=True)
class Geometry:
    """How tokens are cut: `block_tokens` per block of vLLM, `blocks_per_chunk` per chunk of ours."""

    block_tokens: int
    blocks_per_chunk: int

    @classmethod
    def of(cls, block_tokens: int, chunk_tokens: int) -> "Geometry":
        """Chunks of at least `chunk_tokens`, in whole blocks."""
        return cls(block_tokens, -(-chunk_tokens // block_tokens))

    def chunk_starts(self, blocks: int) -> Iterator[tuple[int, int]]:
        """(first block, number of blocks) of each chunk of a sequence; the last one may be shorter."""
        for start in range(0, blocks, self.blocks_per_chunk):
            yield start, min(self.blocks_per_chunk, blocks - start)


def chunk_specs(passport: Passport, geometry: Geometry, token_ids: "array[int]") -> tuple[ChunkSpec, ...]:
    """The chunks that cover every full block of `token_ids` (int32)."""
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
    """The chunks of a window as the catalog lists them: their keys and how many tokens each covers."""
    blocks = [count // geometry.block_tokens for count in tokens]
    starts = itertools.accumulate(blocks, initial=0)
    return tuple(ChunkSpec(key, start, count) for key, start, count in zip(keys, starts, blocks, strict=False))
