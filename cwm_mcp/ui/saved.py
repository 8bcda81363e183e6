"""What restoring saved, from counters alone: the connector's for the tokens, vLLM's for how fast it computes some."""

from collections.abc import Sequence
from typing import Final

from cwm_mcp.api.results import Metric
from cwm_mcp.ui.models import Saved

_COMPUTED: Final = "vllm:request_prefill_kv_computed_tokens_sum"
_WAITED: Final = "vllm:request_prefill_time_seconds_sum"


def saved(samples: Sequence[Metric], exposition: str | None) -> Saved:
    """`samples`: the connector's metrics, without its counters where no engine runs; `exposition`: vLLM's /metrics."""
    loaded = {each.labels["tier"]: int(each.value) for each in samples if each.name == "cwm_loaded_tokens_total"}
    missed = _value(samples, "cwm_missed_tokens_total")
    load_seconds = _value(samples, "cwm_load_seconds_sum")
    # The counter of missed tokens has no labels, and is there from the engine's start.
    tokens = None if missed is None else sum(loaded.values())
    rate = prefill_rate(exposition or "")
    seconds = None
    if tokens is not None and load_seconds is not None and rate is not None:
        seconds = tokens / rate - load_seconds
    return Saved(
        tokens=tokens,
        by_tier=None if tokens is None else loaded,
        missed_tokens=None if missed is None else int(missed),
        load_seconds=load_seconds,
        prefill_tokens_per_second=rate,
        seconds=seconds,
    )


def prefill_rate(exposition: str) -> float | None:
    """Tokens a second, over all requests that vLLM has finished; None before the first one."""
    from prometheus_client.parser import text_string_to_metric_families

    totals = {_COMPUTED: 0.0, _WAITED: 0.0}
    try:
        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                if sample.name in totals:
                    totals[sample.name] += sample.value
    except ValueError:
        return None
    return totals[_COMPUTED] / totals[_WAITED] if totals[_COMPUTED] and totals[_WAITED] else None


def _value(samples: Sequence[Metric], name: str) -> float | None:
    return next((each.value for each in samples if each.name == name), None)
