"""Recovery without an engine: every step at once, on the calling thread."""

from collections.abc import Iterable

from cwm_connector.catalog.base import Catalog
from cwm_connector.core.errors import CWMError
from cwm_connector.operations.claims import Claims
from cwm_connector.operations.start.recovery import Recovered, Slow, recovery
from cwm_connector.tiers.base import DurableTier


def recover(catalog: Catalog, durable_tiers: Iterable[DurableTier], claims: Claims, ranks: int = 1) -> Recovered:
    steps = recovery(catalog, durable_tiers, claims, ranks)
    try:
        step = next(steps)
        while True:
            if not isinstance(step, Slow):
                step = next(steps)
                continue
            try:
                found = step.work()
            except CWMError as problem:
                step = steps.throw(problem)
            else:
                step = steps.send(found)
    except StopIteration as end:
        counts: Recovered = end.value
        return counts
