"""worker/canary.py and core/identity.py: equal KV has agreeing prints, and other KV has not."""

from collections.abc import Sequence

import pytest
import torch

from cwm_connector.core.identity import agree, with_sample
from cwm_connector.worker.canary import PageNumbers, canary_of
from cwm_connector.worker.fence import PASSED
from cwm_connector.worker.group_copy import grouped_copier
from cwm_connector.worker.paged_copy import copier_for


def print_of(cache: torch.Tensor, dtype: torch.dtype | None) -> str:
    numbers = () if dtype is None else [[(dtype, cache[0, 0].nbytes)]]
    return canary_of(copier_for(list(cache)), [(2, 5)], PASSED, numbers)


@pytest.fixture
def cache() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((6, 8, 2, 16, 32), generator=generator).to(torch.bfloat16)


def test_one_bit_of_one_element_changes_an_exact_print(cache: torch.Tensor) -> None:
    before = print_of(cache, None)
    assert print_of(cache.clone(), None) == before
    cache[3, 4] = 0
    assert print_of(cache, None) == before, "a block that is not the canary's"
    cache.view(torch.int16)[3, 5, 1, 7, 9] ^= 1
    assert not agree(print_of(cache, None), before)


@pytest.mark.parametrize(("noise", "same"), [(0.0, True), (0.008, True), (0.1, False), (1.0, False)])
def test_where_kernels_are_tuned_rounding_is_forgiven_and_more_is_not(
    cache: torch.Tensor, noise: float, same: bool
) -> None:
    other = cache + noise * torch.randn(cache.shape, generator=torch.Generator().manual_seed(1)) * cache.std()
    assert agree(print_of(cache, torch.bfloat16), print_of(other.to(torch.bfloat16), torch.bfloat16)) is same


def test_a_print_with_a_sample_and_one_without_do_not_agree() -> None:
    assert not agree("digest", with_sample("digest", [1.0]))
    assert not agree(with_sample("a", [1.0]), with_sample("b", [1.0, 2.0]))
    assert not agree("a~not base64", "b~not base64")


PAGES: list[PageNumbers] = [[(torch.bfloat16, 4096)], [(torch.bfloat16, 192), (torch.float32, 3200)]]
"""Attention, and states in whose pages two kinds of numbers lie. vLLM pads them to the other pages' bytes."""
WRONG = {"attention": (0, 0, 0), "a state's first numbers": (1, 0, 0), "a state's last numbers": (1, 1, 192)}
"""The group, the kind of its numbers, and where they begin in a page."""


def mixed(generator: torch.Generator) -> torch.Tensor:
    """The bytes of a model with states, `[layers, blocks, page]`: for each block a page of attention or of states."""
    pages = torch.zeros((2, 8, 4096), dtype=torch.uint8)
    for block in range(8):
        at = 0
        for dtype, size in PAGES[block % 2]:
            count = 2 * size // dtype.itemsize
            values = torch.randn(count, generator=generator).to(dtype) * (100 if dtype is torch.float32 else 1)
            pages[:, block, at : at + size] = values.view(torch.uint8).view(2, size)
            at += size
    return pages


def mixed_print(pages: torch.Tensor, numbers: Sequence[PageNumbers]) -> str:
    layers = [list(pages), [layer[:, :3392] for layer in pages]]
    return canary_of(grouped_copier(layers, "facts"), [(2, 4), (5,)], PASSED, numbers)


@pytest.mark.parametrize("where", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("numbers", [PAGES, []], ids=["with a tolerance", "exactly"])
def test_wrong_numbers_in_one_group_alone_change_the_print(
    where: tuple[int, int, int], numbers: Sequence[PageNumbers]
) -> None:
    pages = mixed(torch.Generator().manual_seed(0))
    before = mixed_print(pages, numbers)
    assert mixed_print(pages.clone(), numbers) == before
    pages[:, :, 3392:][:, 1::2] = 7
    assert mixed_print(pages, numbers) == before, "vLLM pads these pages, and the padding is nobody's"
    group, kind, first = where
    dtype, size = PAGES[group][kind]
    for block in (2, 4) if group == 0 else (5,):
        pages[:, block, first : first + size].view(dtype).mul_(1.5)
    assert not agree(mixed_print(pages, numbers), before)


def test_rounding_is_forgiven_in_every_group() -> None:
    pages = mixed(torch.Generator().manual_seed(0))
    before = mixed_print(pages, PAGES)
    for block, (at, (dtype, size)) in [(2, (0, PAGES[0][0])), (5, (0, PAGES[1][0])), (5, (192, PAGES[1][1]))]:
        values = pages[:, block, at : at + size].view(dtype)
        values += (torch.randn(values.shape) * 0.008 * values.float().std()).to(dtype)
    after = mixed_print(pages, PAGES)
    assert after != before and agree(after, before)
