"""Exported files made by hand, for tests of what judges them."""

import hashlib
import io
from typing import Any

import msgspec

from cwm_connector.core.types import ChunkKey
from cwm_connector.operations.transfer.archive import (
    PREFIX_BYTES,
    TRAILER_BYTES,
    ArchiveChunk,
    ArchiveHeader,
    ArchiveReader,
    ArchiveWriter,
)
from cwm_connector.tiers.chunk import HEADER_BYTES, ChunkHeader, seal, sealed_bytes

RANKS, CHUNKS, CHUNK_TOKENS, PAYLOAD = 2, 3, 32, 5000


def header(**changed: Any) -> ArchiveHeader:
    fields: dict[str, Any] = {
        "name": "w",
        "description": "what it is",
        "tags": ("a", "b"),
        "model": "small",
        "passport": {"weights": "small", "format": "1"},
        "block_tokens": 16,
        "chunk_tokens": CHUNK_TOKENS,
        "token_ids": bytes(4 * (CHUNKS * CHUNK_TOKENS + 5)),
        "restorable_tokens": CHUNKS * CHUNK_TOKENS,
        "chunks": tuple(
            ArchiveChunk(_key(number), CHUNK_TOKENS, (sealed_bytes(PAYLOAD),) * RANKS) for number in range(CHUNKS)
        ),
        "created_at": 1,
        "exported_at": 2,
        "session_id": "alice",
        "head": "",
        "parent": None,
    }
    return ArchiveHeader(**(fields | changed))


def part(number: int, rank: int) -> memoryview:
    """A sealed chunk, like no other."""
    buffer = bytearray(sealed_bytes(PAYLOAD))
    buffer[HEADER_BYTES : HEADER_BYTES + PAYLOAD] = hashlib.shake_128(bytes((number, rank))).digest(PAYLOAD)
    seal(memoryview(buffer), ChunkHeader(_key(number), rank, CHUNK_TOKENS, 2, PAYLOAD, bytes(32)))
    return memoryview(buffer)


def archive() -> bytes:
    file = io.BytesIO()
    writer = ArchiveWriter(file, header())
    for number in range(CHUNKS):
        for rank in range(RANKS):
            writer.add(part(number, rank))
    writer.finish()
    return file.getvalue()


def read(content: bytes, length: int | None = None) -> tuple[ArchiveHeader, list[bytes]]:
    """Everything that a reader gives, to its end."""
    reader = ArchiveReader(io.BytesIO(content), len(content) if length is None else length)
    parts = []
    for _, _, size in reader.header.parts():
        buffer = bytearray(size)
        reader.read_into(memoryview(buffer))
        parts.append(bytes(buffer))
    reader.finish()
    return reader.header, parts


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header's fields and the bytes of all parts."""
    end = PREFIX_BYTES + int.from_bytes(content[12:20], "little")
    return msgspec.msgpack.decode(content[PREFIX_BYTES:end]), content[end:-TRAILER_BYTES]


def joined(fields: Any, parts: bytes, version: int = 1) -> bytes:
    """A file with every digest right, whatever it holds: what somebody would forge."""
    body = fields if isinstance(fields, bytes) else msgspec.msgpack.encode(fields)
    begin = b"CWM-FILE" + version.to_bytes(4, "little") + len(body).to_bytes(8, "little")
    content = begin + hashlib.sha256(begin + body).digest() + body + parts + b"CWM-END."
    return content + hashlib.sha256(content).digest()


def _key(number: int) -> ChunkKey:
    return ChunkKey(hashlib.sha256(bytes([number])).digest())
