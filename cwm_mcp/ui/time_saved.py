"""Estimate the time that restoring windows saved, from the engine's own metrics."""

from collections.abc import Sequence

from cwm_connector.protocol.stats import Metric
from cwm_mcp.ui.models import TimeSaved


def time_saved(samples: Sequence[Metric]) -> TimeSaved:
    """Return the saved tokens and time. Values that cannot be known are None.

    `samples` are the connector's metrics. They have no counters when no engine runs, and no prefill speed before the
    engine has computed a long prompt.
    """
    loaded = {each.labels["tier"]: int(each.value) for each in samples if each.name == "cwm_loaded_tokens_total"}
    missed = _value(samples, "cwm_missed_tokens_total")
    load_seconds = _value(samples, "cwm_load_seconds_sum")
    # The counter of missed tokens has no labels, so it exists as soon as an engine runs.
    tokens = None if missed is None else sum(loaded.values())
    rate = _value(samples, "cwm_prefill_tokens_per_second")
    seconds = None
    if tokens is not None and load_seconds is not None and rate:
        seconds = tokens / rate - load_seconds
    return TimeSaved(
        tokens=tokens,
        by_tier=None if tokens is None else loaded,
        missed_tokens=None if missed is None else int(missed),
        load_seconds=load_seconds,
        prefill_tokens_per_second=rate,
        seconds=seconds,
    )


def _value(samples: Sequence[Metric], name: str) -> float | None:
    return next((each.value for each in samples if each.name == name), None)
