"""The durable tiers that the settings ask for, opened: fastest first.

Each tier of the registry (`core.types.TierName`) is a package here. It has a function

    open_tier(settings: Settings, home_id: str) -> DurableTier | None

that returns None where the settings do not ask for the tier.
"""

import importlib
from collections.abc import Sequence

from cwm_connector.core.types import TierName
from cwm_connector.settings import Settings
from cwm_connector.tiers.base import DurableTier


def open_tiers(settings: Settings, home_id: str) -> Sequence[DurableTier]:
    """Open one process's own tiers. Nothing is asked of a server yet. `home_id`: see `store.pairing.pair_store`.

    Raises: `Code.ARGUMENT` for a folder that can't be written or a URL that can't be one.
    """
    packages = (importlib.import_module(f"{__package__}.{name.value}") for name in TierName.durable())
    opened = (package.open_tier(settings, home_id) for package in packages)
    return tuple(tier for tier in opened if tier is not None)
