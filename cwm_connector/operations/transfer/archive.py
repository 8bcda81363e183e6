"""The format of an exported window: one file that can be copied and shown to be whole.

    0    8  magic "CWM-FILE"
    8    4  format version, 1 or 2, little-endian like every figure here
    12   8  length of the header in bytes
    20  32  SHA-256 over the 20 bytes before and the header
    52      header: msgpack, the fields of `ArchiveHeader`
            parts: every chunk in the order of the tokens, one sealed part for each rank 0, 1, …, as the tiers keep them
            trailer: magic "CWM-END.", then SHA-256 over every byte of the file before the digest

The header is checked before any of it is used. The length of the whole file follows from it, so a truncated file and
one with extra bytes are refused before a chunk is read. Parts are read once, in order, into the caller's buffer. The
digest covers exactly what was read, so a file that changes meanwhile is refused too. The digest finds accidents and
files that were put together wrongly. It is not a signature: the writer of a file can write its digest.

This module moves bytes and checks that a file agrees with itself. exporter.py and importer.py check that a window fits
the engine and that each part is the chunk it should be. Any thread, one at a time. May block.
docs/export-format.md describes the format for other programs.
"""

import hashlib
import math
import struct
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Final, NoReturn

import msgspec
from msgspec import Meta

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import MAX_DESCRIPTION, MAX_TAGS
from cwm_connector.core.units import MIB
from cwm_connector.tiers.chunk import ALIGNMENT, HEADER_BYTES

FORMAT_VERSION: Final = 2
"""Of windows whose chunks differ in length. Windows of models with full attention alone are written as version 1."""
_EVEN_VERSION: Final = 1
MAX_HEADER_BYTES: Final = 16 * MIB
"""Room for the ids of about three million tokens, as in a message of the control protocol."""
PREFIX_BYTES: Final = 52
TRAILER_BYTES: Final = 40
TOKEN_BYTES: Final = 4

_MAGIC: Final = b"CWM-FILE"
_END: Final = b"CWM-END."
_PREFIX: Final = struct.Struct("<8sIQ")
_SLICE: Final = MIB
"""Bytes of a part that are read or written at once. Nothing is buffered beyond the caller's own buffer."""

# Bounds are checked while the header is decoded, so that a forged header takes no more memory than a good one.
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Count = Annotated[int, Meta(ge=1, lt=1 << 40)]
Time = Annotated[int, Meta(ge=0, lt=1 << 62)]
Name = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=4096)]


class ArchiveChunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A chunk as the header lists it. `sizes`: the bytes of its sealed parts, rank 0 first."""

    key: Key
    tokens: Annotated[int, Meta(ge=0, lt=1 << 40)]
    """0, in version 2, for a chunk that adds none to those before it."""
    sizes: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=1024)]


class ArchiveProof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The greedy token that came after the window's tokens when it was frozen."""

    token_id: Annotated[int, Meta(ge=0, lt=1 << 31)]
    logprob: float
    taken_at: Time


class ArchiveHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The window as the file describes it. Names of sessions, heads and parents mean nothing in another engine."""

    name: Name
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)]
    tags: Annotated[tuple[Name, ...], Meta(max_length=MAX_TAGS)]
    model: Text
    passport: Annotated[dict[Name, Annotated[str, Meta(max_length=1 << 18)]], Meta(max_length=64)]
    block_tokens: Count
    chunk_tokens: Count
    """Tokens in each chunk. The last one may have fewer."""
    token_ids: bytes
    """Little-endian int32: every token of the window, including those after the last chunk."""
    restorable_tokens: Count
    chunks: Annotated[tuple[ArchiveChunk, ...], Meta(min_length=1, max_length=1 << 18)]
    created_at: Time
    exported_at: Time
    """Microseconds since 1970 in UTC, both."""
    session_id: Name
    head: Text
    parent: Name | None
    private: bool = False
    """True if the window was frozen under a cache salt. Left out if it was not, as in the files of older versions."""
    proof: ArchiveProof | None = None
    """Left out if the window has none, as in the files of older versions."""

    @property
    def version(self) -> int:
        """Return the oldest version of the format that can hold the window."""
        return _EVEN_VERSION if self.is_even else FORMAT_VERSION

    @property
    def is_even(self) -> bool:
        """Return whether all chunks have the same number of tokens, except that the last one may have fewer."""
        *whole, last = self.chunks
        return 0 < last.tokens <= self.chunk_tokens and all(each.tokens == self.chunk_tokens for each in whole)

    @property
    def ranks(self) -> int:
        """Return the number of parts of each chunk."""
        return len(self.chunks[0].sizes)

    def parts(self) -> Iterator[tuple[ArchiveChunk, int, int]]:
        """Yield (chunk, rank, size in bytes) in the order of the file."""
        for chunk in self.chunks:
            for rank, size in enumerate(chunk.sizes):
                yield chunk, rank, size


class ArchiveWriter:
    """Writes a file once. The constructor writes the header, `add` each part in order, `finish` the end."""

    def __init__(self, file: BinaryIO, header: ArchiveHeader) -> None:
        """Write the header. Raises: `Code.ARGUMENT` for a window whose header would be over the limit, OSError."""
        self._file = file
        self._digest = hashlib.sha256()
        self._left = header.parts()
        body = msgspec.msgpack.encode(header)
        if len(body) > MAX_HEADER_BYTES:
            raise CWMError(
                Code.ARGUMENT,
                f"a window with a header of {len(body)} bytes can't be exported (the limit is {MAX_HEADER_BYTES}); "
                "freeze a shorter session",
            )
        prefix = _PREFIX.pack(_MAGIC, header.version, len(body))
        self._write(prefix + hashlib.sha256(prefix + body).digest())
        self._write(body)

    def add(self, part: memoryview) -> None:
        """Write the next part, which must have the length that the header gives. Raises: OSError."""
        _, _, size = next(self._left)
        if part.nbytes != size:
            raise ValueError(f"the part has {part.nbytes} bytes, not {size}")
        for start in range(0, size, _SLICE):
            self._write(part[start : start + _SLICE])

    def finish(self) -> None:
        """Write the trailer. Raises: OSError."""
        if next(self._left, None) is not None:
            raise ValueError("parts are missing")
        self._write(_END)
        self._write(self._digest.digest())

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


class ArchiveReader:
    """Reads a file once. The constructor reads the header, `read_into` each part in order, `finish` the end.

    Every method raises `Code.ARGUMENT` for a file of another kind or version, `Code.CORRUPT` for a damaged one, and
    OSError.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        """Read and check the header. `length`: of the whole file, in bytes."""
        self._file = file
        self._digest = hashlib.sha256()
        prefix = self._read(PREFIX_BYTES, "it is too short")
        magic, version, header_bytes = _PREFIX.unpack_from(prefix)
        if magic != _MAGIC:
            raise CWMError(Code.ARGUMENT, "this is not an exported window; give a file that `cwm export` has written")
        if not _EVEN_VERSION <= version <= FORMAT_VERSION:
            raise CWMError(
                Code.ARGUMENT,
                f"the file has format version {version}, this program reads {_EVEN_VERSION} to {FORMAT_VERSION}; "
                "update the older program",
            )
        if header_bytes > min(MAX_HEADER_BYTES, length - PREFIX_BYTES - TRAILER_BYTES):
            _refuse("its header is longer than it can be")
        body = self._read(header_bytes, "it ends within its header")
        if hashlib.sha256(prefix[: _PREFIX.size] + body).digest() != prefix[_PREFIX.size :]:
            _refuse("its header has changed since it was written")
        self.header = _decoded(body, version)
        self._left = self.header.parts()
        expected = archive_bytes(header_bytes, self.header)
        if length != expected:
            _refuse(f"it has {length} bytes instead of {expected}")

    def read_into(self, buffer: memoryview) -> None:
        """Read the next part into `buffer`, which must have its length. The caller checks the bytes."""
        _, _, size = next(self._left)
        if buffer.nbytes != size:
            raise ValueError(f"the buffer has {buffer.nbytes} bytes, not {size}")
        filled = 0
        while filled < size:
            count = self._into(buffer[filled : filled + _SLICE])
            if not count:
                _refuse("it ends within a chunk")
            self._digest.update(buffer[filled : filled + count])
            filled += count

    def finish(self) -> None:
        """Read the trailer and check that the file is as it was written and that nothing follows."""
        if next(self._left, None) is not None:
            raise ValueError("parts are not read")
        if self._read(len(_END), "its end is missing") != _END:
            _refuse("its end is missing")
        expected = self._digest.digest()
        if self._read(len(expected), "its end is missing") != expected:
            _refuse("it has changed since it was written")
        if self._file.read(1):
            _refuse("it has bytes after its end")

    def _read(self, count: int, fault: str) -> bytes:
        data = bytearray(count)
        filled = 0
        while filled < count:
            got = self._into(memoryview(data)[filled:])
            if not got:
                _refuse(fault)
            filled += got
        self._digest.update(data)
        return bytes(data)

    def _into(self, buffer: memoryview) -> int:
        count: int | None = self._file.readinto(buffer)  # type: ignore[attr-defined]
        return count or 0


def archive_bytes(header_bytes: int, header: ArchiveHeader) -> int:
    """Return the length of the whole file."""
    return PREFIX_BYTES + header_bytes + sum(size for _, _, size in header.parts()) + TRAILER_BYTES


def _decoded(body: bytes, version: int) -> ArchiveHeader:
    """Return the header once it agrees with itself."""
    try:
        header = msgspec.msgpack.decode(body, type=ArchiveHeader)
    except Exception:  # bytes can also be nested too deeply or not be UTF-8
        _refuse("its header can't be read")
    for fault, wrong in _faults(header, version):
        if wrong:
            _refuse(fault)
    return header


def _faults(header: ArchiveHeader, version: int) -> Iterator[tuple[str, bool]]:
    """Yield each possible fault of the header, with True if the header has it."""
    yield "its version is not that of its chunks", version == FORMAT_VERSION and header.is_even
    yield "its token ids are not a whole number of tokens", len(header.token_ids) % TOKEN_BYTES != 0
    yield "its chunks have more tokens than it has", header.restorable_tokens * TOKEN_BYTES > len(header.token_ids)
    yield (
        "its chunks are not whole blocks",
        any(tokens % header.block_tokens for tokens in (header.chunk_tokens, *(each.tokens for each in header.chunks))),
    )
    yield (
        "its chunks are not cut evenly",
        version == _EVEN_VERSION and not header.is_even,
    )
    yield (
        "its chunks are not as long as it says",
        sum(each.tokens for each in header.chunks) != header.restorable_tokens,
    )
    yield "its chunks have different numbers of ranks", any(len(each.sizes) != header.ranks for each in header.chunks)
    yield "its proof is not a number", header.proof is not None and not math.isfinite(header.proof.logprob)
    yield (
        "its parts have impossible lengths",
        any(size <= HEADER_BYTES or size % ALIGNMENT for _, _, size in header.parts()),
    )


def _refuse(reason: str, **context: Any) -> NoReturn:
    raise CWMError(Code.CORRUPT, f"the file is damaged: {reason}; have it exported or copied again", **context)
