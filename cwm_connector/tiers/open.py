"""The durable tiers that the settings ask for, opened: fastest first."""

from collections.abc import Sequence

from cwm_connector.core.folders import private_folder
from cwm_connector.settings import CatalogKind, Settings
from cwm_connector.tiers.base import DurableTier
from cwm_connector.tiers.disk.tier import DiskTier


def open_tiers(settings: Settings, store_id: str) -> Sequence[DurableTier]:
    """One process's own; nothing is asked of a server yet. `store_id`: see `recovery.pair_store`.

    Chunks in Redis are shared by the engines that share the catalog there. With a catalog of its own an engine keeps to
    itself: nobody else knows what its windows refer to.

    Raises: CWM-1003 for a folder that can't be written or a URL that can't be one.
    """
    disk = DiskTier(private_folder(settings.chunks_path, "CWM_DISK_PATH"))
    if settings.redis_url is None:
        return (disk,)
    from cwm_connector.tiers.redis.tier import RedisTier  # who has no server need not load the client

    shared = settings.catalog is CatalogKind.REDIS
    namespace = f"{settings.redis_namespace}:{'shared' if shared else store_id}"
    return (disk, RedisTier(settings.redis_url, namespace, shared=shared))
