"""What our keys tell apart is compared with vLLM's own block hashes of the same requests."""

import itertools
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from cwm_connector.core.groups import CacheGroup, GroupKind
from cwm_connector.core.identity import Geometry, Passport, chunk_specs, window_chunks
from cwm_connector.sessions.extras.carried import Carried, RequestExtras
from tests.cwm_connector.sessions.extras.test_adapters import adapter
from tests.support.vllm_parts import BLOCK_TOKENS, request

PASSPORT = Passport({"weights": "w"})
TOKENS = 6 * BLOCK_TOKENS + 5
CAT, DOG = "c" * 64, "d" * 64


def image(offset: int, identifier: str, length: int = 20, modality: str = "image") -> MultiModalFeatureSpec:
    return MultiModalFeatureSpec(
        data=None, modality=modality, identifier=identifier, mm_position=PlaceholderRange(offset, length)
    )


def embeds(tokens: int, *seeds: int) -> dict[str, Any]:
    """A prompt of embeddings. Each seed makes those of a block."""
    parts = [torch.randn(BLOCK_TOKENS, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return {"prompt_embeds": torch.cat(parts)[:tokens]}


def carried_by(one: Any) -> Carried:
    carried = RequestExtras(BLOCK_TOKENS).of(one)
    if carried.adapter is not None:
        carried.adapter.checked.result(10)
    return carried


def requests(folder: Path) -> list[Any]:
    """Requests with equal token ids and different extras."""
    first, second = adapter(folder / "one", b"1", "one"), adapter(folder / "two", b"2", "two")
    images = [
        [],
        [image(20, CAT)],
        [image(20, DOG)],
        [image(21, CAT)],
        [image(20, CAT), image(70, DOG)],
        [image(20, CAT), image(70, CAT)],
        [image(16, CAT, 16)],
        [image(95, CAT, 10)],
    ]
    made = [request(range(TOKENS), f"i{number}", mm_features=each) for number, each in enumerate(images)]
    made += [request(range(TOKENS), f"a{each.lora_name}", lora_request=each) for each in (first, second)]
    made.append(request(range(TOKENS), "both", lora_request=first, mm_features=[image(20, CAT)]))
    return made


def prompts_of_embeddings() -> list[Any]:
    seeds = [(1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 9, 5, 6, 7), (1, 2, 3, 4, 5, 6, 8), (9, 2, 3, 4, 5, 6, 7)]
    return [request([0] * TOKENS, f"e{number}", **embeds(TOKENS, *each)) for number, each in enumerate(seeds)]


def equal_blocks_to_vllm(one: Any, other: Any) -> int:
    pairs = zip(one.block_hashes, other.block_hashes, strict=True)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def keys(one: Any, geometry: Geometry) -> list[bytes]:
    extras = carried_by(one).known
    assert extras is not None
    ids = array("i", one.all_token_ids)
    passport = PASSPORT.carrying(extras.before(len(ids)))
    if geometry.groups:
        ends = range(1, len(ids) // BLOCK_TOKENS + 1)
        return [spec.key for spec in window_chunks(passport, geometry, ids, list(ends)) if not spec.blocks]
    return [spec.key for spec in chunk_specs(passport, geometry, ids)]


ONE_BLOCK = Geometry.of(BLOCK_TOKENS, BLOCK_TOKENS)
STATES = Geometry.of(
    BLOCK_TOKENS,
    BLOCK_TOKENS,
    (CacheGroup(GroupKind.FULL, BLOCK_TOKENS), CacheGroup(GroupKind.STATE, BLOCK_TOKENS)),
)


@pytest.mark.parametrize("geometry", [ONE_BLOCK, STATES], ids=["full attention", "states"])
@pytest.mark.parametrize("kind", ["images and adapters", "embeddings"])
def test_vllm_and_we_agree_on_which_blocks_are_equal(kind: str, geometry: Geometry, tmp_path: Path) -> None:
    made = prompts_of_embeddings() if kind == "embeddings" else requests(tmp_path)
    seen = set()
    for one, other in itertools.product(made, repeat=2):
        expected = equal_blocks_to_vllm(one, other)
        ours = sum(a == b for a, b in zip(keys(one, geometry), keys(other, geometry), strict=True))
        assert ours == expected, (one.request_id, other.request_id)
        mine, theirs = carried_by(one), carried_by(other)
        assert mine.known is not None and theirs.known is not None
        assert min(mine.known.common_tokens(theirs.known), TOKENS) // BLOCK_TOKENS == expected
        assert min(mine.common_tokens(theirs), TOKENS) // BLOCK_TOKENS == expected
        seen.add(expected)
    assert len(seen) >= 3


def test_the_salt_is_no_part_of_the_keys() -> None:
    one, salted = (request(range(TOKENS), f"{salt}", cache_salt=salt) for salt in (None, "salt"))
    assert equal_blocks_to_vllm(one, salted) == 0
    assert keys(one, ONE_BLOCK) == keys(salted, ONE_BLOCK)


def test_a_plain_request_keeps_the_keys_that_it_always_had() -> None:
    (key,) = keys(request(range(BLOCK_TOKENS)), ONE_BLOCK)
    assert key.hex() == "b03005967ecd4fa285658ec6957cca288d571351475cabc136a9b2f983878254"


def test_an_id_that_a_client_chose_is_no_content() -> None:
    carried = carried_by(request(range(TOKENS), mm_features=[image(20, "holiday-1")]))
    assert carried.fault is not None and carried.known is None
    assert "an id that the client chose" in carried.fault


def test_the_adapters_name_before_an_identifier_is_left_out() -> None:
    feature = image(20, f"poet:{CAT}")
    feature.mm_hash = CAT
    (item,) = carried_by(request(range(TOKENS), mm_features=[feature])).items
    assert item.identifier == f"image:{CAT}"


def test_two_adapters_of_one_name_and_other_weights_have_nothing_in_common(tmp_path: Path) -> None:
    place = adapter(tmp_path / "one", b"1")
    before = carried_by(request(range(TOKENS), "before", lora_request=place))
    adapter(tmp_path / "one", b"2")
    after = carried_by(request(range(TOKENS), "after", lora_request=place))  # another engine, after a restart
    assert before.known is not None and after.known is not None
    assert before.known.common_tokens(after.known) == before.common_tokens(after) == 0


def test_a_request_is_read_once_and_forgotten_when_it_ends(tmp_path: Path) -> None:
    extras, one = RequestExtras(BLOCK_TOKENS), request(range(TOKENS), lora_request=adapter(tmp_path / "one", b"1"))
    first = extras.of(one)
    assert extras.of(one) is first
    extras.finished(one.request_id)
    assert extras.of(one) is not first


def test_an_adapter_whose_files_are_gone_is_no_known_content() -> None:
    lora = LoRARequest(lora_name="gone", lora_int_id=1, lora_path="/nowhere/at/all")
    carried = RequestExtras(BLOCK_TOKENS).of(request(range(TOKENS), lora_request=lora))
    assert carried.adapter is not None and carried.adapter.checked.exception(10) is not None
    assert carried.known is None and not carried.is_pending
