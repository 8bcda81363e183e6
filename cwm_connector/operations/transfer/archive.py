"""An exported window as a stream of bytes: one file that can be handed on, and shown to be whole.

    0    8  magic "CWM-FILE"
    8    4  format version, little-endian like every figure here
    12   8  length of the header in bytes
    20  32  SHA-256 over the 20 bytes before and the header
    52      header: msgpack, the fields of `ArchiveHeader`
            the parts: every chunk in the order of the tokens, of each its ranks 0, 1, …, sealed as the tiers keep them
            trailer: magic "CWM-END.", then SHA-256 over every byte of the file before the digest

The header is checked before anything in it is believed, and the file's whole length follows from it: truncation and
bytes too many are known at once, before a chunk is read. Parts are read once, in order, into the caller's buffer; what
was read is what the digest covers, so a file that changes meanwhile is found out too. The digest finds every accident
and every file that was put together wrongly. It is no signature: whoever writes a file can write its digest.

This module moves bytes and judges the file's own consistency; whether a window fits an engine, and whether a part is
the chunk that it should be, is for `exporter.py` and `importer.py` to say. Any thread, one at a time; may block.
docs/export-format.md says the same for people.
"""

import hashlib
import struct
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Final, NoReturn

import msgspec
from msgspec import Meta

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import MAX_DESCRIPTION, MAX_TAGS
from cwm_connector.core.units import MIB
from cwm_connector.tiers.chunk import ALIGNMENT, HEADER_BYTES

FORMAT_VERSION: Final = 1
MAX_HEADER_BYTES: Final = 16 * MIB
"""The ids of about three million tokens: as much as a message of the control protocol takes."""
PREFIX_BYTES: Final = 52
TRAILER_BYTES: Final = 40
TOKEN_BYTES: Final = 4

_MAGIC: Final = b"CWM-FILE"
_END: Final = b"CWM-END."
_PREFIX: Final = struct.Struct("<8sIQ")
_SLICE: Final = MIB
"""How much of a part is read or written at once: nothing is buffered beyond the caller's own buffer."""

# Bounds are checked while the header is decoded, so that a hostile one takes no more memory than an honest one.
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Count = Annotated[int, Meta(ge=1, lt=1 << 40)]
Time = Annotated[int, Meta(ge=0, lt=1 << 62)]
Name = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=4096)]


class ArchiveChunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A chunk as the file lists it. `sizes`: its sealed part of each rank in bytes, rank 0 first."""

    key: Key
    tokens: Count
    sizes: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=1024)]


class ArchiveHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says of its window. Names of sessions, heads and parents are told, and mean nothing elsewhere."""

    name: Name
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)]
    tags: Annotated[tuple[Name, ...], Meta(max_length=MAX_TAGS)]
    model: Text
    passport: Annotated[dict[Name, Text], Meta(max_length=64)]
    block_tokens: Count
    chunk_tokens: Count
    """Tokens of every chunk but the last, which may have fewer."""
    token_ids: bytes
    """Little-endian int32: every token of the window, those beyond the last chunk as well."""
    restorable_tokens: Count
    chunks: Annotated[tuple[ArchiveChunk, ...], Meta(min_length=1, max_length=1 << 18)]
    created_at: Time
    exported_at: Time
    """Microseconds since 1970 in UTC, both."""
    session_id: Name
    head: Text
    parent: Name | None

    @property
    def ranks(self) -> int:
        return len(self.chunks[0].sizes)

    def parts(self) -> Iterator[tuple[ArchiveChunk, int, int]]:
        """(chunk, rank, size in bytes) in the order of the file."""
        for chunk in self.chunks:
            for rank, size in enumerate(chunk.sizes):
                yield chunk, rank, size


class ArchiveWriter:
    """Writes a file from its beginning: the header at once, then `add` for each part in order, then `finish`."""

    def __init__(self, file: BinaryIO, header: ArchiveHeader) -> None:
        """Raises: CWM-1003 for a window whose header would be over the limit; OSError."""
        self._file = file
        self._digest = hashlib.sha256()
        self._left = header.parts()
        body = msgspec.msgpack.encode(header)
        if len(body) > MAX_HEADER_BYTES:
            raise CWMError(
                Code.ARGUMENT,
                f"a window with a header of {len(body)} bytes can't be exported; {MAX_HEADER_BYTES} are the limit",
            )
        prefix = _PREFIX.pack(_MAGIC, FORMAT_VERSION, len(body))
        self._write(prefix + hashlib.sha256(prefix + body).digest())
        self._write(body)

    def add(self, part: memoryview) -> None:
        """The next part, which must have the length that the header gives it. Raises: OSError."""
        _, _, size = next(self._left)
        if part.nbytes != size:
            raise ValueError(f"the part has {part.nbytes} bytes, not {size}")
        for start in range(0, size, _SLICE):
            self._write(part[start : start + _SLICE])

    def finish(self) -> None:
        """Writes the trailer. Raises: OSError."""
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
    """Reads a file once, from its beginning: the header at once, then `read_into` for each part, then `finish`.

    Raises everywhere: CWM-1003 for what is no exported window or one of another version, CWM-4004 for one that is
    damaged, OSError.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        """`length`: of the whole file, in bytes."""
        self._file = file
        self._digest = hashlib.sha256()
        prefix = self._read(PREFIX_BYTES, "it is too short")
        magic, version, header_bytes = _PREFIX.unpack_from(prefix)
        if magic != _MAGIC:
            raise CWMError(Code.ARGUMENT, "this is no exported window; give a file that `cwm export` has written")
        if version != FORMAT_VERSION:
            raise CWMError(
                Code.ARGUMENT,
                f"the file has format version {version}, this program knows {FORMAT_VERSION}; update the older one",
            )
        if header_bytes > min(MAX_HEADER_BYTES, length - PREFIX_BYTES - TRAILER_BYTES):
            _refuse("its header is longer than it can be")
        body = self._read(header_bytes, "it ends within its header")
        if hashlib.sha256(prefix[: _PREFIX.size] + body).digest() != prefix[_PREFIX.size :]:
            _refuse("its header has changed since it was written")
        self.header = _decoded(body)
        self._left = self.header.parts()
        expected = archive_bytes(header_bytes, self.header)
        if length != expected:
            _refuse(f"it has {length} bytes instead of {expected}")

    def read_into(self, buffer: memoryview) -> None:
        """The next part, whose length `buffer` must have. The bytes are as they came: the caller checks them."""
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
        """Returns if every byte read since the beginning is as it was written and nothing follows."""
        if next(self._left, None) is not None:
            raise ValueError("parts are not read")
        if self._read(len(_END), "its end is missing") != _END:
            _refuse("its end is missing")
        expected = self._digest.digest()
        if self._read(len(expected), "its end is missing") != expected:
            _refuse("it has changed since it was written")
        if self._file.read(1):
            _refuse("it goes on behind its end")

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
    """The length of the whole file."""
    return PREFIX_BYTES + header_bytes + sum(size for _, _, size in header.parts()) + TRAILER_BYTES


def _decoded(body: bytes) -> ArchiveHeader:
    """The header, consistent in itself."""
    try:
        header = msgspec.msgpack.decode(body, type=ArchiveHeader)
    except Exception:  # also too deeply nested, or no UTF-8: whatever it is, it is the file's fault
        _refuse("its header is none")
    for fault, wrong in _faults(header):
        if wrong:
            _refuse(fault)
    return header


def _faults(header: ArchiveHeader) -> Iterator[tuple[str, bool]]:
    """Sentences about the header, each with whether it is true."""
    *whole, last = header.chunks
    yield "its token ids are no whole number of tokens", len(header.token_ids) % TOKEN_BYTES != 0
    yield "its chunks have more tokens than it has", header.restorable_tokens * TOKEN_BYTES > len(header.token_ids)
    yield (
        "its chunks are no whole blocks",
        bool(header.chunk_tokens % header.block_tokens or last.tokens % header.block_tokens),
    )
    yield (
        "its chunks are not cut evenly",
        (last.tokens > header.chunk_tokens or any(each.tokens != header.chunk_tokens for each in whole)),
    )
    yield (
        "its chunks are not as long as it says",
        sum(each.tokens for each in header.chunks) != header.restorable_tokens,
    )
    yield "its chunks are of several numbers of ranks", any(len(each.sizes) != header.ranks for each in header.chunks)
    yield "its parts are no chunks", any(size <= HEADER_BYTES or size % ALIGNMENT for _, _, size in header.parts())


def _refuse(reason: str, **context: Any) -> NoReturn:
    raise CWMError(Code.CORRUPT, f"the file is damaged: {reason}; have it exported or copied again", **context)
