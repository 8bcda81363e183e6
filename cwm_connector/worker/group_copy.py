"""The copies of a model with several KV cache groups: for each group, the copiers of its layers.

The layers of a group can have pages of different sizes. Layers with equal pages share a copier, and a payload holds one
stretch for each of them, `[layers, pages, page_bytes]`. vLLM lays the groups over the same bytes, so a page is read
through the layers of its own group only.

Threads as in `paged_copy.py`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from cwm_connector.worker.fence import PASSED, Fence
from cwm_connector.worker.paged_copy import PagedCopier, PagePart, copiers_for


class GroupedCopier:
    """Moves pages of several groups. All copiers of one direction share a queue, so its last fence is behind all."""

    def __init__(self, groups: Sequence[Sequence[PagedCopier]], facts: str) -> None:
        """`facts` gives the pages of the groups their meaning."""
        self._groups = groups
        self._first = groups[0][0]
        self.check_threads = self._first.check_threads
        layouts = [[copier.layout for copier in copiers] for copiers in groups]
        self.layout = hashlib.sha256(repr((facts, layouts)).encode()).digest()
        self.group_bytes = tuple(sum(map(_bytes_of, copiers)) for copiers in groups)

    def fence(self) -> Fence:
        """Return a fence where this step's work on the cache is complete on the model's stream."""
        return self._first.fence()

    def hold_model(self, until: Fence) -> None:
        """Let the model's stream wait for the fence."""
        self._first.hold_model(until)

    def gather(self, parts: Sequence[PagePart], after: Fence) -> Fence:
        """Copy blocks into payloads."""
        fence = PASSED
        try:
            for copier, own in self._shares(parts):
                fence = copier.gather(own, after)
        except BaseException:
            fence.synchronize()
            raise
        return fence

    def scatter(self, parts: Sequence[PagePart], after: Fence) -> Fence:
        """Copy payloads into blocks."""
        fence = PASSED
        try:
            for copier, own in self._shares(parts):
                fence = copier.scatter(own, after)
        except BaseException:
            fence.synchronize()
            raise
        return fence

    def _shares(self, parts: Sequence[PagePart]) -> Iterator[tuple[PagedCopier, list[PagePart]]]:
        """Yield each copier with its stretches of the parts' payloads."""
        for index, copiers in enumerate(self._groups):
            of_group = [part for part in parts if part.group == index]
            before = 0
            for copier in copiers if of_group else ():
                size = _bytes_of(copier)
                yield copier, [_stretch(part, before, size) for part in of_group]
                before += size


def _bytes_of(copier: PagedCopier) -> int:
    return sum(copier.group_bytes)


def _stretch(part: PagePart, before: int, size: int) -> PagePart:
    return replace(part, payload=part.payload[before * part.blocks : (before + size) * part.blocks])


def grouped_copier(groups: Sequence[Sequence[torch.Tensor]], facts: str) -> GroupedCopier:
    """Return the copier of the layers of each group. Raises: `Code.STATE` as `copier_for`."""
    new = copiers_for(groups[0][0].device)
    return GroupedCopier([[new(layers) for layers in _equal_pages(group)] for group in groups], facts)


def _equal_pages(layers: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Return the layers with equal pages together, in the layers' order."""

    def page(layer: torch.Tensor) -> Any:
        return layer.dtype.itemsize, tuple(layer.shape), layer.stride()

    kinds = list(dict.fromkeys(map(page, layers)))
    ordered = sorted(layers, key=lambda layer: kinds.index(page(layer)))
    return [list(same) for _, same in groupby(ordered, key=page)]
