"""The host pool: every piece begins at a multiple of 4,096, wherever the system puts the memory."""

from typing import Any

import pytest
import torch
from lmcache.v1 import memory_management

from cwm_connector.tiers.host_pool import HostPool

PAGE = 4096


@pytest.mark.parametrize("shift", [0, 512, 4095])
def test_pieces_are_aligned_and_the_capacity_is_whole_wherever_the_memory_begins(
    monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    allocate = memory_management._allocate_cpu_memory
    stretches = []

    def somewhere(size: int, *more: Any, **options: Any) -> torch.Tensor:
        stretches.append(allocate(size + shift, *more, **options))
        return stretches[-1][shift:]

    monkeypatch.setattr(memory_management, "_allocate_cpu_memory", somewhere)
    monkeypatch.setattr(memory_management, "_free_cpu_memory", lambda *_, **__: None)
    pool = HostPool(4 * PAGE)
    pieces = [piece for size in (5000, PAGE, 1) if (piece := pool.allocate(size)) is not None]
    assert [piece.tensor.data_ptr() % PAGE for piece in pieces] == [0, 0, 0]
    assert pool.allocate(1) is None
    first, last = pieces[0].tensor.data_ptr(), pieces[-1].tensor.data_ptr()
    assert first >= stretches[0].data_ptr() + shift
    assert last + PAGE <= stretches[0].data_ptr() + stretches[0].numel()
    for piece in pieces:
        pool.free(piece)
    pool.close()
