"""paged_copy.py: what leaves a block comes back bit for bit, in every layout and on every device that torch sees."""

import pytest
import torch

from cwm_connector import compat
from cwm_connector.core.errors import CWMError
from cwm_connector.worker.fence import PASSED
from cwm_connector.worker.paged_copy import (
    CpuCopier,
    DirectCopier,
    PagedCopier,
    PagePart,
    copier_for,
    layout_fingerprint,
    page_views,
    payload_bytes,
)
from tests.support.devices import DEVICES
from tests.support.host_queue import HostQueue

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
    out.gather([PagePart(payload, 3, 0, [9, 0, 4])], out.fence()).synchronize()
    back.scatter([PagePart(payload, 3, 0, [1, 2, 10])], back.fence()).synchronize()
    for before, after in zip(source, target, strict=True):
        assert torch.equal(_bits(after[[1, 2, 10]]), _bits(before[[9, 0, 4]]))


@pytest.mark.parametrize("device", DEVICES)
def test_layers_in_storages_of_their_own_come_back_bit_exact(device: str) -> None:
    source = [layer.clone() for layer in caches(LAYOUTS["NHD (FlashAttention)"], device)]
    target = [torch.zeros_like(layer) for layer in source]
    out, back = copier_for(source), copier_for(target)
    payload = torch.empty(payload_bytes(out, 2), dtype=torch.uint8, pin_memory=device == "cuda")
    out.gather([PagePart(payload, 2, 0, [9, 0])], out.fence()).synchronize()
    back.scatter([PagePart(payload, 2, 0, [1, 2])], back.fence()).synchronize()
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
    copier.gather([PagePart(payload, 3, 0, [5, 6, 7])], copier.fence()).synchronize()
    before = [layer.clone() for layer in source]
    copier.scatter([PagePart(payload, 3, 1, [0])], copier.fence()).synchronize()
    for old, new in zip(before, source, strict=True):
        assert torch.equal(_bits(new[0]), _bits(old[6]))
        assert torch.equal(_bits(new[1:]), _bits(old[1:]))


@pytest.mark.parametrize("order", LAYOUTS.values(), ids=LAYOUTS)
def test_a_batch_is_one_call_of_the_driver_with_a_copy_for_each_run_of_pages(order: str) -> None:
    source, target = caches(order), _same_layout([torch.zeros_like(one) for one in caches(order)], order, "cpu")
    outward, inward = HostQueue(), HostQueue()
    out, back = DirectCopier(source, outward, HostQueue()), DirectCopier(target, HostQueue(), inward)
    payloads = [torch.zeros(payload_bytes(out, 3), dtype=torch.uint8) for _ in range(2)]
    copied = out.gather([PagePart(payloads[0], 3, 0, [9, 0, 4]), PagePart(payloads[1], 3, 0, [1, 2, 3])], out.fence())
    assert not any(payload.any() for payload in payloads)
    copied.synchronize()
    back.scatter([PagePart(payloads[0], 3, 1, [7, 8]), PagePart(payloads[1], 3, 0, [0])], PASSED).synchronize()
    for before, after in zip(source, target, strict=True):
        assert torch.equal(_bits(after[[7, 8, 0]]), _bits(before[[0, 4, 1]]))
    runs = ([1, 1, 1, 3], [2, 1]) if order.startswith("layer") else ([1] * 6, [1] * 3)
    assert [batch.sizes for batch in (*outward.batches, *inward.batches)] == [
        [pages * out.page_bytes for pages in each] * LAYERS for each in runs
    ]


def test_pages_copied_one_by_one_lie_in_the_payload_as_the_cpu_copies_them() -> None:
    layers = [layer.clone() for layer in caches(LAYOUTS["NHD (FlashAttention)"])]
    copiers: list[PagedCopier] = [CpuCopier(layers), DirectCopier(layers, HostQueue(), HostQueue())]
    payloads = [torch.empty(payload_bytes(copier, 2), dtype=torch.uint8) for copier in copiers]
    for copier, payload in zip(copiers, payloads, strict=True):
        copier.gather([PagePart(payload, 2, 0, [3, 8])], copier.fence()).synchronize()
    assert torch.equal(*payloads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_copies_wait_for_what_the_model_has_queued_before() -> None:
    layers = [torch.zeros((64, 2, 16, 512), dtype=torch.bfloat16, device="cuda") for _ in range(4)]
    copier = copier_for(layers)
    blocks = list(range(64))
    payload = torch.empty(payload_bytes(copier, 64), dtype=torch.uint8, pin_memory=True)
    slow = torch.randn((4096, 4096), device="cuda")
    for _ in range(50):
        slow = slow @ slow / 4096
    for layer in layers:
        layer.fill_(3.0)
    copier.gather([PagePart(payload, 64, 0, blocks)], copier.fence()).synchronize()
    assert (payload.view(torch.bfloat16) == 3.0).all()
    for _ in range(50):
        slow = slow @ slow / 4096
    for layer in layers:
        layer.fill_(5.0)  # still pending when the load comes
    copier.scatter([PagePart(payload, 64, 0, blocks)], copier.fence()).synchronize()
    assert all((layer == 3.0).all() for layer in layers)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_what_the_model_queues_later_waits_for_the_copies_that_hold_it() -> None:
    layers = [torch.zeros((64, 2, 16, 512), dtype=torch.bfloat16, device="cuda") for _ in range(32)]
    copier = copier_for(layers)
    payload = torch.full((payload_bytes(copier, 64) // 2,), 3.0, dtype=torch.bfloat16, pin_memory=True)
    whole = [PagePart(payload.view(torch.uint8), 64, 0, list(range(64)))]
    slow = torch.randn((4096, 4096), device="cuda")
    for _ in range(50):
        slow = slow @ slow / 4096
    copied = copier.scatter(whole, copier.fence())
    assert not copied.query()
    copier.hold_model(copied)
    read = torch.stack([layer.float().min() for layer in layers])
    assert (read == 3.0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_call_that_fails_has_waited_for_the_copies_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = list(torch.ones((32, 512, 2, 16, 1024), dtype=torch.bfloat16, device="cuda"))
    copier = copier_for(layers)
    payload = torch.zeros(payload_bytes(copier, 512), dtype=torch.uint8, pin_memory=True)
    whole = [PagePart(payload, 512, 0, list(range(512)))]
    copied = copier.gather(whole, copier.fence())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(compat, "queue_copies", fail)
    with pytest.raises(RuntimeError, match="no"):
        copier.gather(whole, copier.fence())
    assert isinstance(copied, torch.cuda.Event) and copied.query()
    assert (payload.view(torch.bfloat16) == 1.0).all()


def test_a_payload_is_layers_by_blocks_by_page() -> None:
    layers = caches(LAYOUTS["NHD (FlashAttention)"])
    copier = CpuCopier(layers)
    payload = torch.empty(payload_bytes(copier, 2), dtype=torch.uint8)
    copier.gather([PagePart(payload, 2, 0, [3, 8])], PASSED)
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
