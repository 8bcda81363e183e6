"""A sealed chunk's bytes: header, payload, zero padding, and one checksum over all of them.

    0                  4,096                              4,096 + payload, rounded up to 4,096
    | header, zeros ... | payload                | zeros ... |

The storage below checks nothing: it serves flipped bits, over-long files and one chunk's bytes under another's name.
So the header names the chunk, and the checksum covers every byte, header and padding included, with its own eight
bytes read as zeros. A CRC finds every single flipped bit and every burst up to 64 bits. It is no defence against
somebody who changes chunks on purpose. O_DIRECT asks for multiples of 4,096 bytes.

Any thread; nothing blocks. This module needs neither torch nor LMCache, so chunks can be verified without an engine.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NoReturn

from awscrt.checksums import combine_crc64nvme, crc64nvme

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey

ALIGNMENT: Final = 4096
HEADER_BYTES: Final = 4096

_MAGIC: Final = b"CWMCHUNK"
_VERSION: Final = 1
_FIXED: Final = struct.Struct("<8sI")
"""Magic and version. Every version of the header begins with these."""
_FIELDS: Final = struct.Struct("<32sIIIQ32s")
"""Key, kv_rank, tokens, blocks, payload_bytes, layout."""
_CHECKSUM: Final = struct.Struct("<Q")
_CHECKSUM_AT: Final = _FIXED.size + _FIELDS.size


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """The description of a chunk that is sealed with it. `layout` is the 32-byte fingerprint of a page's layout."""

    key: ChunkKey
    kv_rank: int
    tokens: int
    blocks: int
    payload_bytes: int
    layout: bytes


def sealed_bytes(payload_bytes: int) -> int:
    """Return the length of the sealed chunk: header, payload, and padding to a multiple of 4,096 bytes."""
    return HEADER_BYTES + -(-payload_bytes // ALIGNMENT) * ALIGNMENT


def seal(buffer: memoryview, header: ChunkHeader) -> None:
    """Write header, padding and checksum around the payload, which is at `HEADER_BYTES` already.

    `buffer` is writable, of format "B", and `sealed_bytes(header.payload_bytes)` long. Raises ValueError if it is not,
    or if key or layout are not 32 bytes. These are mistakes of the caller, not of a tier.
    """
    if buffer.nbytes != sealed_bytes(header.payload_bytes):
        raise ValueError(f"{buffer.nbytes} bytes can't seal a payload of {header.payload_bytes}")
    if len(header.key) != 32 or len(header.layout) != 32:
        raise ValueError(f"key and layout take 32 bytes each, not {len(header.key)} and {len(header.layout)}")
    padding_at = HEADER_BYTES + header.payload_bytes
    buffer[:HEADER_BYTES] = bytes(HEADER_BYTES)
    buffer[padding_at:] = bytes(buffer.nbytes - padding_at)
    _FIXED.pack_into(buffer, 0, _MAGIC, _VERSION)
    _FIELDS.pack_into(
        buffer,
        _FIXED.size,
        header.key,
        header.kv_rank,
        header.tokens,
        header.blocks,
        header.payload_bytes,
        header.layout,
    )
    _CHECKSUM.pack_into(buffer, _CHECKSUM_AT, _checksum(buffer))


def read_header(buffer: memoryview) -> ChunkHeader:
    """Return the buffer's header. The checksum is not looked at, so nothing in it can be relied on before `check`.

    Raises: `Code.CORRUPT` for bytes that are no chunk, or a chunk of a version that this program doesn't know.
    """
    if buffer.nbytes < HEADER_BYTES:
        _refuse("length", f"{buffer.nbytes} bytes are less than a header")
    magic, version = _FIXED.unpack_from(buffer, 0)
    if magic != _MAGIC:
        _refuse("magic", "it does not begin like a chunk")
    if version != _VERSION:
        _refuse("version", f"its version is {version}, this program knows {_VERSION}")
    key, kv_rank, tokens, blocks, payload_bytes, layout = _FIELDS.unpack_from(buffer, _FIXED.size)
    return ChunkHeader(ChunkKey(key), kv_rank, tokens, blocks, payload_bytes, layout)


def check(buffer: memoryview, expected: ChunkHeader) -> None:
    """Return if the buffer is exactly the chunk that was sealed with `expected`: its key, its rank, every bit.

    Raises: `Code.CORRUPT`. The `fault` in its context names the difference: magic, version, key, rank, length, layout,
    tokens, blocks or checksum.
    """
    _check_header(buffer, expected)
    _compare(buffer, _checksum(buffer))


@dataclass(frozen=True, slots=True)
class CheckInPieces:
    """The check of a chunk in pieces, so that several threads finish it sooner. It refuses what `check` refuses."""

    buffer: memoryview
    expected: ChunkHeader
    pieces: int
    """A buffer of fewer pages than that is cut into fewer pieces."""

    def work(self) -> list[Callable[[], int]]:
        """Return the work on each piece, for any thread. Its results, in order, are for `conclude`."""
        first, *others = self._cut()
        return [partial(_checksum, first), *(partial(crc64nvme, piece) for piece in others)]

    def conclude(self, checksums: Sequence[int]) -> None:
        """Return if the buffer is the expected chunk. Raises: `Code.CORRUPT` as `check`."""
        _check_header(self.buffer, self.expected)
        whole = checksums[0]
        for piece, checksum in zip(self._cut()[1:], checksums[1:], strict=True):
            whole = combine_crc64nvme(whole, checksum, piece.nbytes)
        _compare(self.buffer, whole)

    def _cut(self) -> list[memoryview]:
        step = max(HEADER_BYTES, -(-self.buffer.nbytes // self.pieces // ALIGNMENT) * ALIGNMENT)
        return [self.buffer[at : at + step] for at in range(0, self.buffer.nbytes, step)]


def _check_header(buffer: memoryview, expected: ChunkHeader) -> None:
    found = read_header(buffer)
    if found.key != expected.key:
        _refuse("key", "it is another chunk")
    if found.kv_rank != expected.kv_rank:
        _refuse("rank", f"it is rank {found.kv_rank}'s part, not rank {expected.kv_rank}'s")
    if found.payload_bytes != expected.payload_bytes:
        _refuse("length", f"it holds {found.payload_bytes} bytes, not {expected.payload_bytes}")
    if buffer.nbytes != sealed_bytes(expected.payload_bytes):
        _refuse("length", f"it is {buffer.nbytes} bytes long, not {sealed_bytes(expected.payload_bytes)}")
    if found.layout != expected.layout:
        _refuse("layout", "its pages have another layout")
    if found.tokens != expected.tokens:
        _refuse("tokens", f"it holds {found.tokens} tokens, not {expected.tokens}")
    if found.blocks != expected.blocks:
        _refuse("blocks", f"it holds {found.blocks} blocks, not {expected.blocks}")


def _compare(buffer: memoryview, checksum: int) -> None:
    (stored,) = _CHECKSUM.unpack_from(buffer, _CHECKSUM_AT)
    if stored != checksum:
        _refuse("checksum", "its bytes have changed since it was stored")


def check_intact(buffer: memoryview, key: ChunkKey, kv_rank: int) -> None:
    """Check a chunk whose layout the caller can't know, such as another model's. The rest must be as its header says.

    Raises: `Code.CORRUPT` as `check`.
    """
    found = read_header(buffer)
    check(buffer, replace(found, key=key, kv_rank=kv_rank))


def _checksum(buffer: memoryview) -> int:
    """Compute CRC-64/NVME over the buffer with the checksum's own bytes as zeros. Copies nothing; releases the GIL."""
    before = crc64nvme(buffer[:_CHECKSUM_AT])
    own = crc64nvme(bytes(_CHECKSUM.size), before)
    checksum: int = crc64nvme(buffer[_CHECKSUM_AT + _CHECKSUM.size :], own)
    return checksum


def _refuse(fault: str, reason: str) -> NoReturn:
    raise CWMError(
        Code.CORRUPT,
        f"a stored chunk fails its check ({fault}): {reason}; its tokens are computed again; freeze "
        "the session again to replace it",
        fault=fault,
    )
