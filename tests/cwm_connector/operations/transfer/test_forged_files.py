"""importer.py: damaged, forged and unusual files never become a window."""

import asyncio
import math
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.transfer.archive import PREFIX_BYTES, TRAILER_BYTES
from cwm_connector.protocol.calls import Op
from tests.support.archives import joined, split
from tests.support.miniature import Miniature, chunk_files
from tests.support.stores import (
    CHUNK_BYTES,
    files_of,
    frozen,
    hashes_of,
    text,
)
from tests.support.transfers import (
    content_of,
    names,
    put,
    refused,
)


async def test_a_file_with_a_flipped_bit_never_becomes_a_window(there: Miniature, file: Path) -> None:
    sound, dice = content_of(file), random.Random(3)
    for _ in range(30):
        content = bytearray(sound)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        put(file, bytes(content))
        with pytest.raises(CWMError):
            await there.call(Op.IMPORT, path=str(file))
    assert await names(there) == [] and chunk_files(there.settings.home) == []


@pytest.mark.parametrize("at", [-1, -33])
async def test_a_file_with_a_damaged_digest_is_refused(there: Miniature, file: Path, at: int) -> None:
    content = bytearray(content_of(file))
    content[at] ^= 1
    put(file, bytes(content))
    await refused(there, Code.CORRUPT, file)


async def forged(
    engine: Miniature, file: Path, change: Callable[[dict[str, Any], bytes], tuple[Any, bytes]]
) -> CWMError:
    """A file whose digests are right and whose content is not."""
    put(file, joined(*change(*split(content_of(file)))))
    return await refused(engine, Code.CORRUPT, file)


async def test_chunks_under_keys_that_do_not_follow_from_the_tokens_are_refused(there: Miniature, file: Path) -> None:
    def other_tokens(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        tokens = struct.pack("<i", 77) + fields["token_ids"][4:]
        return fields | {"token_ids": tokens}, parts

    assert "do not follow from its tokens" in (await forged(there, file, other_tokens)).message


async def test_negative_tokens_are_refused(there: Miniature, file: Path) -> None:
    def negative(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        return fields | {"token_ids": fields["token_ids"][:-4] + struct.pack("<i", -1)}, parts

    await forged(there, file, negative)


async def test_images_that_cannot_be_read_are_refused(there: Miniature, file: Path) -> None:
    def pictured(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        return fields | {"passport": fields["passport"] | {"items": "[[1]]"}}, parts

    assert "its images can't be read" in (await forged(there, file, pictured)).message


@pytest.mark.parametrize("proof", [[7, math.nan, 1], [7, -math.inf, 1], [-7, -0.5, 1], [7, -0.5], [7, -0.5, 1, 2]])
async def test_an_impossible_proof_is_refused(there: Miniature, file: Path, proof: list[Any]) -> None:
    await forged(there, file, lambda fields, parts: (fields | {"proof": proof}, parts))


async def test_swapped_and_foreign_chunks_are_refused(here: Miniature, there: Miniature, file: Path) -> None:
    sound = content_of(file)

    def swapped(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        return fields, parts[CHUNK_BYTES : 2 * CHUNK_BYTES] + parts[:CHUNK_BYTES] + parts[2 * CHUNK_BYTES :]

    def foreign(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        return fields, parts[: 2 * CHUNK_BYTES] + other

    await frozen(here, "v", text(9))
    other = content_of(files_of(here.settings.home, await hashes_of(here, "v"))[0])
    await forged(there, file, swapped)
    put(file, sound)
    await forged(there, file, foreign)


async def test_chunks_of_another_length_are_refused(there: Miniature, file: Path) -> None:
    def longer(fields: dict[str, Any], parts: bytes) -> tuple[Any, bytes]:
        key, tokens, (size,) = fields["chunks"][-1]
        return fields | {"chunks": [*fields["chunks"][:-1], [key, tokens, [size + 4096]]]}, parts + bytes(4096)

    await forged(there, file, longer)


async def test_a_sparse_file_of_a_terabyte_is_refused_at_once(there: Miniature, file: Path) -> None:
    fields, _ = split(content_of(file))
    size = 1 << 38
    chunks = [[key, tokens, [size]] for key, tokens, _ in fields["chunks"]]
    content = joined(fields | {"chunks": chunks}, b"")
    put(file, content[:-TRAILER_BYTES])
    os.truncate(file, len(content) + 3 * size)
    began = time.monotonic()
    await refused(there, Code.CORRUPT, file)
    assert time.monotonic() - began < 5


async def test_a_path_that_is_not_a_regular_file_is_refused_without_waiting(
    there: Miniature, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    for path in (
        tmp_path / "link",
        tmp_path / "loop",
        tmp_path / "fifo",
        tmp_path / "s",
        tmp_path,
        Path("/dev/zero"),
        Path("/dev/tty"),
    ):
        await asyncio.wait_for(refused(there, Code.ARGUMENT, path), 10)
    listener.close()
    await refused(there, Code.READ_FAILED, tmp_path / "nothing")
    for path in (Path("w.cwm"), Path("/"), Path("/a\0b")):
        await refused(there, Code.ARGUMENT, path)


async def test_a_file_that_changes_while_it_is_read_is_refused(there: Miniature, file: Path) -> None:
    sound = content_of(file)

    def change(done: int, total: int, _: str) -> None:
        if done == 1:
            with file.open("r+b") as written:
                written.seek(len(sound) - TRAILER_BYTES - 100)
                written.write(b"changed")

    with pytest.raises(CWMError, match="CWM-4004"):
        await there.call(Op.IMPORT, change, path=str(file))
    put(file, sound)

    def shrink(done: int, total: int, _: str) -> None:
        if done == 1:
            os.truncate(file, PREFIX_BYTES)

    with pytest.raises(CWMError, match="CWM-4004"):
        await there.call(Op.IMPORT, shrink, path=str(file))
    assert await names(there) == [] and chunk_files(there.settings.home) == []
