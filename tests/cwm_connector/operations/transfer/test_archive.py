"""archive.py: a file comes back as it was written, or is refused; whatever it says of itself."""

import io
import random
import tracemalloc
from typing import Any

import msgspec
import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.transfer.archive import (
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    TRAILER_BYTES,
    ArchiveReader,
    ArchiveWriter,
)
from cwm_connector.tiers.chunk import sealed_bytes
from tests.support.archives import CHUNKS, PAYLOAD, RANKS, archive, header, joined, part, read, split

PART = sealed_bytes(PAYLOAD)
CONTENT = archive()
HEADER_END = len(CONTENT) - TRAILER_BYTES - CHUNKS * RANKS * PART


def refused(content: bytes) -> CWMError:
    with pytest.raises(CWMError) as problem:
        read(content)
    assert problem.value.code in (Code.ARGUMENT, Code.CORRUPT) and "; " in problem.value.message
    return problem.value


def test_a_written_file_is_read_back() -> None:
    found, parts = read(CONTENT)
    assert found == header()
    assert parts == [part(number, rank) for number in range(CHUNKS) for rank in range(RANKS)]


@pytest.mark.parametrize("region", ["header", "chunks", "end"])
def test_every_flipped_bit_is_noticed(region: str) -> None:
    span = {
        "header": range(HEADER_END),
        "chunks": range(HEADER_END, len(CONTENT) - TRAILER_BYTES),
        "end": range(len(CONTENT) - TRAILER_BYTES, len(CONTENT)),
    }[region]
    dice = random.Random(region)
    for at in span if region == "end" else dice.sample(span, 300):
        content = bytearray(CONTENT)
        content[at] ^= 1 << dice.randrange(8)
        refused(bytes(content))


def test_a_file_cut_at_any_boundary_or_anywhere_else_is_refused() -> None:
    boundaries = {0, 8, 12, 20, PREFIX_BYTES, HEADER_END, len(CONTENT) - TRAILER_BYTES, len(CONTENT) - 32}
    boundaries |= {HEADER_END + number * PART for number in range(CHUNKS * RANKS)}
    near = {at + step for at in boundaries for step in (-1, 0, 1)} | set(
        random.Random(1).sample(range(len(CONTENT)), 200)
    )
    for length in sorted(near & set(range(len(CONTENT)))):
        refused(CONTENT[:length])


def test_a_bad_header_or_length_is_refused_before_a_chunk_is_read() -> None:
    flipped = bytearray(CONTENT)
    flipped[PREFIX_BYTES + 40] ^= 1
    for content in (bytes(flipped), CONTENT[:-1], CONTENT[: HEADER_END + PART], CONTENT + b"\0"):
        with pytest.raises(CWMError, match="CWM-4004"):
            ArchiveReader(io.BytesIO(content), len(content))


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    for length in (PREFIX_BYTES + 3, HEADER_END + 5, HEADER_END + PART, len(CONTENT) - TRAILER_BYTES, len(CONTENT) - 1):
        with pytest.raises(CWMError, match="CWM-4004"):
            read(CONTENT[:length], len(CONTENT))


@pytest.mark.parametrize("more", [b"\0", b"\0" * 4096, CONTENT])
def test_a_longer_file_is_refused_also_if_it_grows_while_it_is_read(more: bytes) -> None:
    refused(CONTENT + more)
    with pytest.raises(CWMError, match=r"CWM-4004.*bytes after its end"):
        read(CONTENT + more, len(CONTENT))


def test_swapped_chunks_are_noticed() -> None:
    parts = [CONTENT[HEADER_END + number * PART :][:PART] for number in range(CHUNKS * RANKS)]
    for one in range(len(parts)):
        for other in range(one):
            swapped = parts.copy()
            swapped[one], swapped[other] = parts[other], parts[one]
            refused(CONTENT[:HEADER_END] + b"".join(swapped) + CONTENT[-TRAILER_BYTES:])


@pytest.mark.parametrize("version", [0, 3, 2**32 - 1])
def test_another_version_is_refused_by_number(version: int) -> None:
    problem = refused(joined(*split(CONTENT), version))
    assert problem.code is Code.ARGUMENT and str(version) in problem.message


def test_a_file_has_the_oldest_version_that_can_hold_its_window() -> None:
    assert "version" in refused(joined(*split(CONTENT), 2)).message
    whole = header()
    tail = msgspec.structs.replace(whole.chunks[0], tokens=0)
    with_tail = msgspec.structs.replace(whole, chunks=(*whole.chunks, tail))
    assert (whole.version, with_tail.version) == (1, 2)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"CWM-FIL", bytes(9000), b"SQLite format 3\0" * 600])
def test_a_file_that_is_not_an_exported_window_is_refused(content: bytes) -> None:
    refused(content)


def test_a_header_of_another_file_is_refused() -> None:
    other = io.BytesIO()
    ArchiveWriter(other, header(name="v"))
    assert len(other.getvalue()) == HEADER_END
    refused(other.getvalue() + CONTENT[HEADER_END:])


def chunk(**changed: Any) -> list[Any]:
    return list(({"key": bytes(32), "tokens": 32, "sizes": [PART] * RANKS} | changed).values())


HOSTILE: list[dict[str, Any]] = [
    {"name": 7},
    {"name": "x" * 129},
    {"name": None},
    {"description": "x" * 2001},
    {"tags": ["t"] * 33},
    {"tags": "a"},
    {"passport": {"a": 1}},
    {"passport": {str(number): "" for number in range(65)}},
    {"passport": []},
    {"block_tokens": 0},
    {"block_tokens": -16},
    {"block_tokens": 2**63},
    {"block_tokens": 5},
    {"chunk_tokens": 1 << 62},
    {"chunk_tokens": 16.5},
    {"chunk_tokens": 16},
    {"token_ids": b""},
    {"token_ids": bytes(4 * 96 + 1)},
    {"token_ids": bytes(4 * 95)},
    {"token_ids": [1, 2]},
    {"restorable_tokens": 95},
    {"restorable_tokens": -96},
    {"chunks": []},
    {"chunks": {}},
    {"chunks": [chunk(key=b"short")] * 3},
    {"chunks": [chunk(tokens=-1)] * 3},
    {"chunks": [chunk(tokens=0)] * 3},
    {"chunks": [chunk(tokens=2**63)] * 3},
    {"chunks": [chunk(sizes=[])] * 3},
    {"chunks": [chunk(sizes=[2**62])] * 3},
    {"chunks": [chunk(sizes=[-4096] * RANKS)] * 3},
    {"chunks": [chunk(sizes=[PART - 1, PART + 1])] * 3},
    {"chunks": [chunk(sizes=[4096, 2 * PART - 4096])] * 3},
    {"chunks": [chunk(sizes=[PART] * 3), chunk(), chunk(sizes=[PART])]},
    {"chunks": [[*chunk(), "more"]] * 3},
    {"chunks": [chunk(tokens=48), chunk(tokens=16), chunk()]},
    {"chunks": [chunk(sizes=[PART] * 2000)] * 3},
    {"created_at": -1},
    {"created_at": "yesterday"},
    {"parent": 3},
    {"surplus": 1},
]


@pytest.mark.parametrize("changed", HOSTILE, ids=str)
def test_a_header_that_contradicts_itself_is_refused(changed: dict[str, Any]) -> None:
    fields, parts = split(CONTENT)
    assert refused(joined(fields | changed, parts)).code is Code.CORRUPT


@pytest.mark.parametrize("name", ["name", "chunks", "token_ids", "passport"])
def test_a_header_without_one_of_its_fields_is_refused(name: str) -> None:
    fields, parts = split(CONTENT)
    del fields[name]
    refused(joined(fields, parts))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(b"\x91" * 100_000, id="deep"),
        pytest.param(b"\x81\xa4name" * 50_000, id="deep maps"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a huge map"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="a huge list"),
        pytest.param(b"\x81\xa4\xff\xff\xff\xff\x01", id="no UTF-8"),
    ],
)
def test_a_header_that_can_t_be_read_is_refused(body: bytes) -> None:
    refused(joined(body, split(CONTENT)[1]))


def test_a_forged_header_takes_little_more_memory_than_its_length() -> None:
    """Lists, maps and strings as long as the limit allows, and a length that says there is more."""
    fields, parts = split(CONTENT)
    room = MAX_HEADER_BYTES - 4096
    bodies = [
        msgspec.msgpack.encode(fields | {"chunks": [[]] * room}),
        msgspec.msgpack.encode(fields | {"chunks": [chunk(key=b"")] * (room // 16)}),
        msgspec.msgpack.encode(fields | {"tags": [""] * room}),
        msgspec.msgpack.encode(fields | {"passport": {f"{n:x}": "" for n in range(room // 8)}}),
        msgspec.msgpack.encode(fields | {"description": "x" * room}),
        msgspec.msgpack.encode(fields | {"surplus": [None] * room}),
    ]
    for body in bodies:
        content = joined(body, parts)
        assert len(body) <= MAX_HEADER_BYTES
        tracemalloc.start()
        refused(content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * MAX_HEADER_BYTES, peak
    for length in (MAX_HEADER_BYTES + 1, 2**40, 2**64 - 1):
        begin = b"CWM-FILE\1\0\0\0" + length.to_bytes(8, "little")
        with pytest.raises(CWMError, match="CWM-4004"):
            ArchiveReader(io.BytesIO(begin + bytes(64)), 2**63)


def test_a_window_whose_header_is_over_the_limit_is_not_exported() -> None:
    with pytest.raises(CWMError, match="CWM-1003"):
        ArchiveWriter(io.BytesIO(), header(token_ids=bytes(MAX_HEADER_BYTES)))


def test_parts_are_read_into_the_caller_s_buffer_and_nowhere_else() -> None:
    big = 64 << 20
    one = header(chunks=(header().chunks[0].__class__(bytes(32), 32, (big,)),), restorable_tokens=32)

    class Zeros(io.RawIOBase):
        """A file that is written to nowhere."""

        def write(self, data: Any) -> int:
            return memoryview(data).nbytes

    buffer = memoryview(bytearray(big))
    tracemalloc.start()
    writer = ArchiveWriter(Zeros(), one)  # type: ignore[arg-type]
    writer.add(buffer)
    writer.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
