"""Which chunks leave a tier first. Each policy is a file of its own, and CWM_TIER_POLICY names the one to use.

The caller's thread. Nothing blocks. Imports `settings` only.
"""

from collections.abc import Callable, Hashable
from typing import Final, TypeVar

from cwm_connector.settings import PolicyName
from cwm_connector.tiers.policies.base import TierPolicy
from cwm_connector.tiers.policies.lru import LeastRecentlyUsed
from cwm_connector.tiers.policies.slru import SegmentedLru

__all__ = ["TierPolicy", "new_policy"]

K = TypeVar("K", bound=Hashable)

_BY_NAME: Final[dict[PolicyName, Callable[[], TierPolicy[Hashable]]]] = {
    PolicyName.LRU: LeastRecentlyUsed,
    PolicyName.SLRU: SegmentedLru,
}


def new_policy(name: PolicyName) -> TierPolicy[K]:
    """Return a new policy of that name."""
    return _BY_NAME[name]()  # type: ignore[return-value]  # each is generic; the table can't say so
