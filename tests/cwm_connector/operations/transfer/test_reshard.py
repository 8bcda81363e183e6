"""reshard.py: a window's KV divided over other ranks, bit for bit, or refused with the reason."""

import hashlib
import random
from array import array
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code
from cwm_connector.core.groups import HeadShape
from cwm_connector.core.identity import Geometry, Passport, chunk_specs
from cwm_connector.operations.transfer.reshard import resharded
from cwm_connector.protocol.calls import Op
from cwm_connector.tiers.chunk import HEADER_BYTES, ChunkHeader, seal, sealed_bytes
from tests.support.archives import joined, split
from tests.support.miniature import BLOCK_BYTES, LAYERS, Miniature
from tests.support.stores import forget_memory, frozen
from tests.support.transfers import RESTORABLE, TEXT, content_of, put, refused
from tests.support.vllm_parts import BLOCK_TOKENS

BLOCKS = 3
HEADS = HeadShape(heads=2, layers=LAYERS, block_tokens=BLOCK_TOKENS, cell_bytes=128, tokens_first=False)
"""Of a miniature engine's pages."""
ONE = Passport({"weights": "small", "tensor_parallel": "1", "layout": "LBHNC:own", "canary": "of one rank"})
LAYOUT = b"two ranks' pages".ljust(32)
TWO = {
    "weights": "small",
    "tensor_parallel": "2",
    "layout": f"LBHNC:{hashlib.sha256(LAYOUT * 2).hexdigest()}",
    "canary": "of two ranks",
}


def known_kv(shape: HeadShape) -> dict[tuple[int, int, int, int], bytes]:
    """The bytes of each cell, by layer, block, token and head."""
    chosen = random.Random(5)
    places = (
        (layer, block, token, head)
        for layer in range(shape.layers)
        for block in range(BLOCKS)
        for token in range(shape.block_tokens)
        for head in range(shape.heads)
    )
    return {place: chosen.randbytes(shape.cell_bytes) for place in places}


def on_rank(kv: dict[tuple[int, int, int, int], bytes], shape: HeadShape, heads: list[int]) -> bytes:
    """A rank's payload, cell by cell."""
    tokens = range(shape.block_tokens)
    payload = bytearray()
    for layer in range(shape.layers):
        for block in range(BLOCKS):
            if shape.tokens_first:
                order = [(token, head) for token in tokens for head in heads]
            else:
                order = [(token, head) for head in heads for token in tokens]
            for token, head in order:
                payload += kv[layer, block, token, head]
    return bytes(payload)


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize(
    ("heads", "before", "after"),
    [
        (4, [[0, 1, 2, 3]], [[0, 1], [2, 3]]),
        (4, [[0, 1], [2, 3]], [[0, 1, 2, 3]]),
        (4, [[0, 1], [2, 3]], [[0], [1], [2], [3]]),
        (2, [[0], [1]], [[0], [0], [1], [1]]),
        (2, [[0], [0], [1], [1]], [[0, 1]]),
        (1, [[0]], [[0], [0]]),
    ],
    ids=["1-2", "2-1", "2-4", "2-4-copies", "4-1-copies", "1-2-copies"],
)
def test_every_head_comes_to_its_rank_bit_for_bit(
    heads: int, before: list[list[int]], after: list[list[int]], tokens_first: bool
) -> None:
    shape = HeadShape(heads, layers=2, block_tokens=4, cell_bytes=24, tokens_first=tokens_first)
    kv = known_kv(shape)
    parts = [memoryview(on_rank(kv, shape, each)) for each in before]
    assert resharded(parts, BLOCKS, shape, len(after)) == [on_rank(kv, shape, each) for each in after]


def of_two_ranks(file: Path, passport: dict[str, str]) -> None:
    """Rewrite an exported file as an engine with two ranks would have written it."""
    fields, content = split(content_of(file))
    tokens = array("i")
    tokens.frombytes(fields["token_ids"])
    specs = chunk_specs(Passport(passport), Geometry.of(fields["block_tokens"], fields["chunk_tokens"]), tokens)
    sizes = [sum(chunk[2]) for chunk in fields["chunks"]]
    parts, chunks = bytearray(), []
    for spec, start, size in zip(specs, accumulate(sizes, initial=0), sizes, strict=False):
        payload = content[start + HEADER_BYTES : start + size][: spec.blocks * BLOCK_BYTES]
        tokens_in = spec.blocks * BLOCK_TOKENS
        own = []
        for rank, pages in enumerate(resharded([memoryview(payload)], spec.blocks, HEADS, 2)):
            sealed = bytearray(sealed_bytes(len(pages)))
            sealed[HEADER_BYTES : HEADER_BYTES + len(pages)] = pages
            seal(memoryview(sealed), ChunkHeader(spec.key, rank, tokens_in, spec.blocks, len(pages), LAYOUT))
            own.append(len(sealed))
            parts += sealed
        chunks.append([spec.key, tokens_in, own])
    put(file, joined(fields | {"passport": passport, "chunks": chunks}, bytes(parts)))


async def engine_with(tmp_path: Path, name: str, **more: Any) -> Miniature:
    return await Miniature.started(tmp_path / name, passport=ONE, **{"heads": HEADS, **more})


async def exported_by_two(tmp_path: Path, **changed: str) -> Path:
    one, file = await engine_with(tmp_path, "exporting"), tmp_path / "w.cwm"
    await frozen(one, "w", TEXT)
    await one.call(Op.EXPORT, window_name="w", path=str(file))
    one.close()
    of_two_ranks(file, TWO | changed)
    return file


async def test_a_window_of_two_ranks_is_loaded_by_an_engine_with_one(tmp_path: Path) -> None:
    """The miniature counts a page as loaded only if it is the one that computing would have made."""
    file = await exported_by_two(tmp_path)
    engine = await engine_with(tmp_path, "importing")
    imported = await engine.call(Op.IMPORT, path=str(file), reshard=True)
    assert imported["restorable_tokens"] == RESTORABLE
    forget_memory(engine)
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await engine.resume(TEXT, session_id="bob") == RESTORABLE
    again = await engine.call(Op.IMPORT, path=str(file), window_name="again", reshard=True)
    assert again["new_bytes"] == 0
    origin = (await engine.call(Op.STATUS, window_name="again"))["origin"]
    assert origin == {"exported_as": "w", "frozen_from": "w", "resharded_from": 2}
    engine.close()


async def test_without_being_asked_other_ranks_are_refused(tmp_path: Path) -> None:
    file = await exported_by_two(tmp_path)
    engine = await engine_with(tmp_path, "importing")
    problem = await refused(engine, Code.PASSPORT, file)
    assert problem.context["field"] == "tensor_parallel"
    engine.close()


@pytest.mark.parametrize(("field", "value"), [("weights", "large"), ("layout", "LBNHC:other")])
async def test_whatever_else_differs_stays_refused(tmp_path: Path, field: str, value: str) -> None:
    file = await exported_by_two(tmp_path, **{field: value})
    engine = await engine_with(tmp_path, "importing")
    problem = await refused(engine, Code.PASSPORT, file, reshard=True)
    assert problem.context["field"] == field
    engine.close()


async def test_a_model_without_heads_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = await exported_by_two(tmp_path)
    engine = await engine_with(tmp_path, "importing", heads="it has several kinds of attention or states")
    problem = await refused(engine, Code.STATE, file, reshard=True)
    assert "because it has several kinds of attention or states; serve it with 2 ranks" in problem.message
    engine.close()


async def test_layers_that_are_divided_too_are_refused(tmp_path: Path) -> None:
    file = await exported_by_two(tmp_path, pipeline_parallel="2")
    engine = await engine_with(tmp_path, "importing")
    assert "pipeline parallelism" in (await refused(engine, Code.STATE, file, reshard=True)).message
    engine.close()


async def test_a_part_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    file = await exported_by_two(tmp_path)
    fields, parts = split(content_of(file))
    damaged = bytearray(parts)
    damaged[HEADER_BYTES + 100] ^= 1
    put(file, joined(fields, bytes(damaged)))
    engine = await engine_with(tmp_path, "importing")
    await refused(engine, Code.CORRUPT, file, reshard=True)
    engine.close()


async def test_more_ranks_than_heads_can_serve_are_refused(tmp_path: Path) -> None:
    file = await exported_by_two(tmp_path)
    engine = await engine_with(tmp_path, "importing", heads=HeadShape(3, LAYERS, BLOCK_TOKENS, 128, False))
    assert "3 heads can't be divided over 2 ranks" in (await refused(engine, Code.ARGUMENT, file, reshard=True)).message
    engine.close()
