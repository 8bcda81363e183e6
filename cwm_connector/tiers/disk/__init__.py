"""The disk tier: one file a chunk, written, synced and renamed. Transfer threads; may block."""

from cwm_connector.core.folders import private_folder
from cwm_connector.settings import Settings
from cwm_connector.tiers.base import DurableTier

__all__ = ["open_tier"]


def open_tier(settings: Settings, home_id: str) -> DurableTier:
    """Open the folder of CWM_DISK_PATH, which is made if it is not there.

    Raises: `Code.ARGUMENT` for a folder that can't be written.
    """
    from cwm_connector.tiers.disk.tier import DiskTier  # loads LMCache

    folder = private_folder(settings.chunks_path, "CWM_DISK_PATH")
    return DiskTier(folder, limit_bytes=settings.disk_cache_bytes)
