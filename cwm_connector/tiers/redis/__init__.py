"""The Redis tier: one value a chunk, with the claims of the engines that need it. Transfer threads; may block."""

from cwm_connector.settings import CatalogKind, Settings
from cwm_connector.tiers.base import DurableTier

__all__ = ["open_tier"]


def open_tier(settings: Settings, home_id: str) -> DurableTier | None:
    """Return a tier in the server of CWM_REDIS_URL, which is not asked yet; None where that is not set.

    Engines that share the catalog in Redis share the chunks there. An engine with a catalog of its own keeps to itself:
    nobody else knows what its windows refer to.

    Raises: `Code.ARGUMENT` for a malformed URL.
    """
    if settings.redis_url is None:
        return None
    from cwm_connector.tiers.redis.tier import RedisTier  # a process without a server need not load the client

    shared = settings.catalog is CatalogKind.REDIS
    namespace = f"{settings.redis_namespace}:{'shared' if shared else home_id}"
    return RedisTier(settings.redis_url, namespace, shared=shared)
