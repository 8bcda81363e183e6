"""paged_copy.py: what leaves a block comes back bit for bit, in every layout and on every device that torch sees."""

import pytest
import torch

from cwm_connector.core.errors import CWMError
from cwm_connector.worker.paged_copy import CpuCopier, copier_for, layout_fingerprint, page_views, payload_bytes
from tests.support.devices import DEVICES

LAYERS, BLOCKS, TOKENS, HEADS, CONTENT = 3, 11, 16, 2, 24

LAYOUTS = {
    "NHD (FlashAttention)": "layer block token head content",
    "HND (FlashInfer)": "layer block head token content",
    "NHD, layers inside blocks": "block layer token head content",
    "HND, layers inside blocks": "block layer head token content",
}


def caches(order: str, device: str = "cpu") -> list[torch.Tensor]:
    """Every layer's cache as vLLM shows it, `[blocks, heads, tokens, content]`, over one storage laid out as named."""
    sizes = {"layer": LAYERS, "block": BLOCKS, "token": TOKENS, "head": HEADS, "content": CONTENT}
    names = order.split()
    torch.manual_seed(7)
    raw = torch.randint(-(2**15), 2**15, [sizes[name] for name in names], dtype=torch.int16, device=device)
    view = raw.view(torch.bfloat16).permute(*(names.index(n) for n in ("layer", "block", "head", "token", "content")))
    return list(view)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", LAYOUTS.values(), ids=LAYOUTS)
def test_blocks_come_back_bit_exact_in_other_blocks(order: str, device: str) -> None:
    source, target = caches(order, device), [torch.zeros_like(layer) for layer in caches(order, device)]
    target = _same_layout(target, order, device)
    out, back = copier_for(source), copier_for(target)
    payload = torch.empty(payload_bytes(out, 3), dtype=torch.uint8, pin_memory=device == "cuda")
    out.gather([9, 0, 4], payload, out.fence())
    back.scatter(payload, 3, 0, [1, 2, 10])
    for before, after in zip(source, target, strict=True):
        assert torch.equal(_bits(after[[1, 2, 10]]), _bits(before[[9, 0, 4]]))


@pytest.mark.parametrize("device", DEVICES)
def test_layers_in_storages_of_their_own_come_back_bit_exact(device: str) -> None:
    source = [layer.clone() for layer in caches(LAYOUTS["NHD (FlashAttention)"], device)]
    target = [torch.zeros_like(layer) for layer in source]
    out, back = copier_for(source), copier_for(target)
    payload = torch.empty(payload_bytes(out, 2), dtype=torch.uint8, pin_memory=device == "cuda")
    out.gather([9, 0], payload, out.fence())
    back.scatter(payload, 2, 0, [1, 2])
    for before, after in zip(source, target, strict=True):
        assert torch.equal(_bits(after[[1, 2]]), _bits(before[[9, 0]]))


@pytest.mark.parametrize("order", LAYOUTS.values(), ids=LAYOUTS)
def test_layers_of_one_allocation_are_seen_as_one(order: str) -> None:
    assert len(page_views(caches(order))) == 1


def test_layers_at_uneven_distances_are_not_seen_as_one() -> None:
    layers = list(torch.zeros((4, BLOCKS, HEADS, TOKENS, CONTENT), dtype=torch.bfloat16))
    assert [view.shape[0] for view in page_views([layers[0], layers[1], layers[3]])] == [2, 1]


@pytest.mark.parametrize("device", DEVICES)
def test_a_part_of_a_chunk_fills_only_its_blocks(device: str) -> None:
    source = caches(LAYOUTS["HND (FlashInfer)"], device)
    copier = copier_for(source)
    payload = torch.empty(payload_bytes(copier, 3), dtype=torch.uint8, pin_memory=device == "cuda")
    copier.gather([5, 6, 7], payload, copier.fence())
    before = [layer.clone() for layer in source]
    copier.scatter(payload, 3, 1, [0])
    for old, new in zip(before, source, strict=True):
        assert torch.equal(_bits(new[0]), _bits(old[6]))
        assert torch.equal(_bits(new[1:]), _bits(old[1:]))


def test_a_payload_is_layers_by_blocks_by_page() -> None:
    layers = caches(LAYOUTS["NHD (FlashAttention)"])
    copier = CpuCopier(layers)
    payload = torch.empty(payload_bytes(copier, 2), dtype=torch.uint8)
    copier.gather([3, 8], payload, None)
    page = payload.view(LAYERS, 2, copier.page_bytes)[1, 1]
    assert torch.equal(page.view(torch.int16).view(TOKENS, HEADS, CONTENT).permute(1, 0, 2), _bits(layers[1][8]))


def test_layouts_of_the_same_shape_have_different_fingerprints() -> None:
    prints = {
        layout_fingerprint(caches(order)) for order in (LAYOUTS["NHD (FlashAttention)"], LAYOUTS["HND (FlashInfer)"])
    }
    assert len(prints) == 2


def test_a_layout_that_scatters_a_page_is_refused_with_the_setting_to_change() -> None:
    with pytest.raises(CWMError, match=r"CWM-3001.*VLLM_KV_CACHE_LAYOUT"):
        page_views(caches("layer head block token content"))


def test_layers_of_different_shapes_are_refused() -> None:
    layers = caches(LAYOUTS["NHD (FlashAttention)"])
    with pytest.raises(CWMError, match="CWM-3001"):
        page_views([layers[0], layers[1][:, :, :8]])


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16)


def _same_layout(layers: list[torch.Tensor], order: str, device: str) -> list[torch.Tensor]:
    fresh = caches(order, device)
    for layer, zeros in zip(fresh, layers, strict=True):
        layer.copy_(zeros)
    return fresh
