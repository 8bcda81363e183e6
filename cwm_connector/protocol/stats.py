"""The results that describe the engine as a whole: its tiers, its health and its metrics. See `results.py`."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from cwm_connector.protocol.results import Answer

HealthState: TypeAlias = Literal["healthy", "degraded", "unhealthy"]


class TierStats(msgspec.Struct, frozen=True):
    """The contents of one tier, and its limit."""

    blocks: int | None
    bytes: int | None
    limit_bytes: int | None


class TrashStats(msgspec.Struct, frozen=True):
    """The windows that `cwm rm` has deleted and `cwm undo` can bring back."""

    windows: int
    bytes: Annotated[int, Meta(description="What becomes free when they go. Part of total_bytes.")]


class KvStore(msgspec.Struct, frozen=True):
    """Stored chunks of all windows, and how often they were found when they were needed."""

    total_blocks: int | None
    total_bytes: int | None
    hit_rate: float | None
    hits: int | None
    misses: int | None
    dedup_ratio: float | None
    tiers: dict[str, TierStats | None]
    trash: TrashStats | None = None


class VllmCache(msgspec.Struct, frozen=True):
    """vLLM's own counters, in tokens since its start."""

    connected: bool
    prefix_cache_hit_rate: float | None
    external_hit_rate: float | None
    cached_tokens: int | None


class Transfer(msgspec.Struct, frozen=True):
    """A freeze, thaw, export, import or check that is under way."""

    kind: str
    name: Annotated[str | None, Meta(description="The window.")]
    done: Annotated[int, Meta(description="Chunks.")]
    total: int | None
    started_at: str


class StoreStats(Answer, frozen=True):
    """The engine's part of the statistics."""

    kv_store: KvStore
    transfers: list[Transfer] | None = None
    """Those that are under way, the oldest first. None without an engine."""


class CacheStats(StoreStats, frozen=True, kw_only=True):
    """Statistics of the stored chunks and of vLLM's own cache. The client asks vLLM for the second part."""

    vllm: VllmCache


class Component(msgspec.Struct, frozen=True):
    """One part of the system and how it is. The message says what to do about a fault."""

    name: str
    status: HealthState
    message: str
    latency_ms: float | None


class Health(Answer, frozen=True):
    """The health of all components that were asked for."""

    status: HealthState
    uptime_seconds: float
    version: str
    components: list[Component]


class Metric(msgspec.Struct, frozen=True):
    """One sample of a Prometheus series."""

    name: str
    type: str
    value: float
    labels: dict[str, str]
    help: str


class Metrics(Answer, frozen=True):
    """One page of samples: `metrics` in the json format, `text` in Prometheus's. The engine gives all as `metrics`."""

    metrics: list[Metric] | None = None
    text: str | None = None
    total: Annotated[int | None, Meta(description="Samples that match.")] = None
    has_more: bool | None = None
    next: str | None = None
