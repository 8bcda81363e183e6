"""CWM's own Prometheus metrics. Every value is measured where the bytes move. Nothing is estimated.

Any thread may change the counters. Nothing here blocks. The control socket serves the values.
"""

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cwm_connector.core.types import TierName
from cwm_connector.protocol.stats import Metric

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one engine, in a registry of their own. The process-wide registry belongs to vLLM."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.operations = Counter(
            "cwm_operations", "Operations by outcome.", ["operation", "outcome"], registry=self.registry
        )
        self.freezes = _freezes(self.registry)
        self._loaded_tokens = Counter(
            "cwm_loaded_tokens", "Tokens loaded into the engine.", ["tier"], registry=self.registry
        )
        _begin_with_zero(self._loaded_tokens, TierName)
        self._missed_tokens = Counter(
            "cwm_missed_tokens", "Tokens that should have been loaded and were recomputed.", registry=self.registry
        )
        self._hits = Counter("cwm_chunk_hits", "Chunks loaded.", registry=self.registry)
        self._misses = Counter("cwm_chunk_misses", "Chunks that could not be loaded.", registry=self.registry)
        self.stored_bytes = Counter("cwm_stored_bytes", "Bytes written to disk by freezes.", registry=self.registry)
        self.recomputed_tokens = Counter(
            "cwm_recomputed_tokens", "Tokens computed again to complete a freeze.", registry=self.registry
        )
        self.auto_freezes = Counter(
            "cwm_auto_freezes", "Automatic freezes by outcome.", ["reason", "outcome"], registry=self.registry
        )
        self.auto_thaws = Counter(
            "cwm_auto_thaws", "Loads of a window that nobody has thawed for the request.", registry=self.registry
        )
        self.shared_loads = Counter(
            "cwm_shared_loads", "Waits of a request for blocks that another request loads.", registry=self.registry
        )
        self.declined_tokens = Counter(
            "cwm_declined_tokens",
            "Tokens that could be loaded and were computed because that is faster (CWM_LOAD=auto).",
            registry=self.registry,
        )
        self.read_rate = Gauge(
            "cwm_read_tokens_per_second", "Speed of the last reads from a tier.", ["tier"], registry=self.registry
        )
        self.capture_seconds = Histogram(
            "cwm_capture_seconds",
            "Seconds from the call of a freeze until its blocks are read.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.freeze_seconds = Histogram(
            "cwm_freeze_seconds",
            "Seconds from the call of a freeze until its commit.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.load_seconds = Histogram(
            "cwm_load_seconds", "Seconds to load the chunks of one request.", buckets=_SECONDS, registry=self.registry
        )
        self.prefill_rate = Gauge(
            "cwm_prefill_tokens_per_second",
            "Speed of the last prompts; NaN before the first.",
            registry=self.registry,
        )
        self.tiers = TierMetrics(self.registry)
        self.windows = Gauge("cwm_windows", "Windows in the catalog.", registry=self.registry)
        self.chunks = Gauge("cwm_chunks", "Chunks in the catalog.", registry=self.registry)
        self.chunk_bytes = Gauge("cwm_chunk_bytes", "Bytes of the catalog's chunks, each once.", registry=self.registry)

    def loaded(self, tier: TierName, chunks: int, tokens: int) -> None:
        """Count chunks that were loaded from the tier, and the tokens that were needed of them."""
        self._hits.inc(chunks)
        self._loaded_tokens.labels(tier.value).inc(tokens)

    def missed(self, chunks: int, tokens: int) -> None:
        """Count chunks that could not be loaded, and the tokens that were needed of them."""
        self._misses.inc(chunks)
        self._missed_tokens.inc(tokens)

    def hits_and_misses(self) -> tuple[int, int]:
        """Return the number of chunks that were loaded and that could not be loaded since the engine's start."""
        return int(self._hits._value.get()), int(self._misses._value.get())

    def hit_rate(self) -> float:
        """Return the loaded fraction of the chunks that should have been loaded, or 0 if there were none."""
        hits, misses = self.hits_and_misses()
        return hits / (hits + misses) if hits + misses else 0.0

    def samples(self) -> list[Metric]:
        """Return all samples with name, type, value, labels and help, without values that are not known yet (NaN)."""
        return [
            Metric(
                name=sample.name,
                type=family.type,
                value=sample.value,
                labels=dict(sample.labels),
                help=family.documentation,
            )
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created") and not math.isnan(sample.value)
        ]


class TierMetrics:
    """The state of the durable tiers, as the last reader of the metrics found it, and the bad copies in them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.up = Gauge("cwm_tier_up", "1 if the tier answers, 0 if it is away.", ["tier"], registry=registry)
        self.stored = Gauge("cwm_tier_bytes", "Bytes of chunks in a durable tier.", ["tier"], registry=registry)
        self.limit = Gauge("cwm_tier_limit_bytes", "Bytes that a durable tier may hold.", ["tier"], registry=registry)
        self.disk_free = Gauge("cwm_disk_free_bytes", "Free bytes on the disk with the chunks.", registry=registry)
        self.bad_copies = Counter(
            "cwm_bad_copies", "Reads of chunks that were corrupt or missing.", ["tier"], registry=registry
        )
        _begin_with_zero(self.bad_copies, TierName)


def _begin_with_zero(counter: Counter, values: Iterable[str]) -> None:
    """Let a counter have its labels from the start, because a rate needs a value of before the first event."""
    for value in values:
        counter.labels(value)


def _freezes(registry: CollectorRegistry) -> Counter:
    """Return the counter of freezes."""
    text = "Freezes by outcome: done, refused (wrong or withdrawn calls) or failed."
    counter = Counter("cwm_freezes", text, ["outcome"], registry=registry)
    _begin_with_zero(counter, ("done", "refused", "failed"))
    return counter
