"""Measure how fast blocks are copied into chunks and back, and compare it with a plain copy of the same bytes.

    python -m benchmarks.paging [--chunk-tokens 256] [--chunks 16]

The upper limit is one large contiguous copy: between pinned host memory and the device on CUDA, from memory to memory
on one thread on the CPU. The figures are medians of the rounds, with the smallest and the largest. The shape is the
small model's on the CPU and Llama-3.1-8B's on CUDA (131,072 bytes per token).
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cwm_connector.worker.paged_copy import PagedCopier, PagePart, copier_for, payload_bytes
from tests.support.machine import describe

ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a model's paged KV cache."""

    layers: int
    heads: int
    head_size: int
    block_tokens: int
    blocks: int


CPU_SHAPE = Shape(layers=30, heads=3, head_size=64, block_tokens=128, blocks=200)
CUDA_SHAPE = Shape(layers=32, heads=8, head_size=128, block_tokens=16, blocks=4000)


def rates(work: Callable[[], None], n_bytes: int, device: str) -> list[float]:
    """Return the GB/s of each round. The first round does not count."""
    measured = []
    for _ in range(ROUNDS + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        measured.append(n_bytes / (time.perf_counter() - begun) / 1e9)
    return measured[1:]


def print_rate(name: str, measured: list[float], ceiling: float | None = None) -> float:
    """Print the median and range in GB/s, with the share of `ceiling` if one is given. Return the median."""
    median = statistics.median(measured)
    share = "" if ceiling is None else f"   {median / ceiling:5.0%} of the plain copy"
    print(f"{name:28} {median:7.2f} GB/s  ({min(measured):.2f}–{max(measured):.2f}){share}")
    return median


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=16)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = CUDA_SHAPE if device == "cuda" else CPU_SHAPE
    torch.set_num_threads(1)
    page = (2 * shape.heads, shape.block_tokens, shape.head_size)
    cache = torch.zeros((shape.layers, shape.blocks, *page), dtype=torch.bfloat16, device=device)
    copier = copier_for(list(cache))
    per_chunk = options.chunk_tokens // shape.block_tokens
    payloads = [
        torch.zeros(payload_bytes(copier, per_chunk), dtype=torch.uint8, pin_memory=device == "cuda")
        for _ in range(options.chunks)
    ]
    total = sum(payload.numel() for payload in payloads)
    random.seed(0)
    ids = random.sample(range(shape.blocks), per_chunk * options.chunks)
    of_chunk = [ids[start : start + per_chunk] for start in range(0, len(ids), per_chunk)]

    print(json.dumps(describe()))
    print(
        f"{options.chunks} chunks of {total // options.chunks / 1e6:.1f} MB, {shape.layers} layers, scattered blocks."
    )
    flat = torch.zeros(total, dtype=torch.uint8, pin_memory=device == "cuda")
    on_device = torch.zeros(total, dtype=torch.uint8, device=device)
    out = print_rate("plain copy, out", rates(lambda: _copy(on_device, flat), total, device))
    back = print_rate("plain copy, back", rates(lambda: _copy(flat, on_device), total, device))
    print_rate("blocks -> chunks", rates(lambda: _gather(copier, of_chunk, payloads), total, device), out)
    print_rate("chunks -> blocks", rates(lambda: _scatter(copier, of_chunk, payloads), total, device), back)


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


def _parts(of_chunk: list[list[int]], payloads: list[torch.Tensor]) -> list[PagePart]:
    return [PagePart(payload, len(ids), 0, ids) for ids, payload in zip(of_chunk, payloads, strict=True)]


def _gather(copier: PagedCopier, of_chunk: list[list[int]], payloads: list[torch.Tensor]) -> None:
    fences = [copier.gather([part], copier.fence()) for part in _parts(of_chunk, payloads)]
    fences[-1].synchronize()


def _scatter(copier: PagedCopier, of_chunk: list[list[int]], payloads: list[torch.Tensor]) -> None:
    fences = [copier.scatter([part], copier.fence()) for part in _parts(of_chunk, payloads)]
    fences[-1].synchronize()


if __name__ == "__main__":
    main()
