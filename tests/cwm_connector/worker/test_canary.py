"""worker/canary.py and core/identity.py: equal KV has agreeing prints, and other KV has not."""

import pytest
import torch

from cwm_connector.core.identity import agree, with_sample
from cwm_connector.worker.canary import canary_of
from cwm_connector.worker.fence import PASSED
from cwm_connector.worker.paged_copy import copier_for


def print_of(cache: torch.Tensor, dtype: torch.dtype | None) -> str:
    return canary_of(copier_for(list(cache)), (2, 5), PASSED, dtype)


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
