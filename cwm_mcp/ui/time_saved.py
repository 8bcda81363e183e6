"""Estimate the time that restoring windows saved, from the connector's counters and vLLM's."""

from collections.abc import Sequence
from typing import Final

from cwm_connector.protocol.results import Metric
from cwm_mcp.ui.models import TimeSaved

_COMPUTED: Final = "vllm:request_prefill_kv_computed_tokens_sum"
_DURATION: Final = "vllm:request_prefill_time_seconds_sum"


def time_saved(samples: Sequence[Metric], exposition: str | None) -> TimeSaved:
    """Return the saved tokens and time. Values that cannot be known are None.

    `samples` are the connector's metrics, which have no counters when no engine runs. `exposition` is the text of
    vLLM's /metrics, or None if vLLM does not answer.
    """
    loaded = {each.labels["tier"]: int(each.value) for each in samples if each.name == "cwm_loaded_tokens_total"}
    missed = _value(samples, "cwm_missed_tokens_total")
    load_seconds = _value(samples, "cwm_load_seconds_sum")
    # The counter of missed tokens has no labels, so it exists as soon as an engine runs.
    tokens = None if missed is None else sum(loaded.values())
    rate = prefill_rate(exposition or "")
    seconds = None
    if tokens is not None and load_seconds is not None and rate is not None:
        seconds = tokens / rate - load_seconds
    return TimeSaved(
        tokens=tokens,
        by_tier=None if tokens is None else loaded,
        missed_tokens=None if missed is None else int(missed),
        load_seconds=load_seconds,
        prefill_tokens_per_second=rate,
        seconds=seconds,
    )


def prefill_rate(exposition: str) -> float | None:
    """Return vLLM's prefill speed in tokens per second over all finished requests, or None before the first."""
    from prometheus_client.parser import text_string_to_metric_families

    totals = {_COMPUTED: 0.0, _DURATION: 0.0}
    try:
        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                if sample.name in totals:
                    totals[sample.name] += sample.value
    except ValueError:
        return None
    return totals[_COMPUTED] / totals[_DURATION] if totals[_COMPUTED] and totals[_DURATION] else None


def _value(samples: Sequence[Metric], name: str) -> float | None:
    return next((each.value for each in samples if each.name == name), None)
