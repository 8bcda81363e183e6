"""Builds the worker side of an engine: its tiers, and the threads that move chunks between them and the KV cache."""

from collections.abc import Sequence
from dataclasses import dataclass

from cwm_connector.settings import Settings
from cwm_connector.store.pairing import open_home
from cwm_connector.tiers.base import DurableTier
from cwm_connector.tiers.cpu import CpuTier
from cwm_connector.tiers.open import open_tiers
from cwm_connector.tiers.policies import new_policy
from cwm_connector.worker.canary import PageNumbers
from cwm_connector.worker.paged_copy import PagedCopier
from cwm_connector.worker.worker import WorkerSide


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """One rank's worker side and the tiers that it uses. `side.close` closes them too."""

    side: WorkerSide
    cpu: CpuTier
    durable_tiers: Sequence[DurableTier]
    """Fastest first."""


def build_worker(
    settings: Settings,
    copier: PagedCopier,
    *,
    rank: int,
    world_size: int,
    block_tokens: int,
    numbers: Sequence[PageNumbers] = (),
) -> WorkerParts:
    """Open the home for one rank and return its worker side. The CPU memory is shared out among all ranks.

    Blocks on the disk. Raises: `Code.ARGUMENT` for a folder that can't be written or belongs to another home.
    """
    store_id = open_home(settings.home, settings.chunks_path, settings.catalog_path)
    cpu = CpuTier(settings.cpu_cache_bytes // world_size, new_policy(settings.tier_policy))
    durable_tiers = open_tiers(settings, store_id)
    side = WorkerSide(
        rank=rank,
        world_size=world_size,
        copier=copier,
        block_tokens=block_tokens,
        cpu=cpu,
        durable_tiers=durable_tiers,
        numbers=numbers,
    )
    return WorkerParts(side, cpu, durable_tiers)
