"""What the tools answer: the contract's fields. None is "unknown", never zero.

The engine and the offline reader hand over dictionaries with these names; whatever else they say is dropped here.
"""

from typing import Any, Literal

from pydantic import BaseModel


class Frozen(BaseModel):
    window_name: str
    session_id: str
    token_count: int
    captured_tokens: int
    recomputed_tokens: int
    block_count: int
    total_size_bytes: int
    new_bytes: int
    storage_tier: str
    tiers: dict[str, int]
    """Stored blocks by the fastest tier that holds them."""
    parent_window: str | None
    duration_ms: float


class ReplyTokens(BaseModel):
    prompt: int
    cached: int | None
    generated: int


class Thawed(BaseModel):
    session_id: str
    cache_salt: str
    window_name: str
    token_count: int
    restorable_tokens: int
    restored_by_tier: dict[str, int]
    restoration_time_ms: float
    partial: bool
    warning: str | None
    recompute_is_faster: bool | None
    tokens_uri: str = ""
    """The resource with the window's exact token ids: who sends them first goes on exactly."""
    transcript_uri: str = ""
    reply: str | None = None
    reply_finish_reason: str | None = None
    """`length`: the reply was cut at max_tokens."""
    reply_tokens: ReplyTokens | None = None


class Cloned(BaseModel):
    source_window: str
    target_window: str
    shared_blocks: int
    new_bytes: int


class WindowItem(BaseModel):
    """Of a damaged window the name alone is known."""

    name: str
    description: str | None
    tags: list[str]
    model: str | None
    token_count: int | None
    size_bytes: int | None
    unique_bytes: int | None
    storage_tier: str | None
    state: str
    created_at: str | None
    parent_window: str | None
    session_id: str | None


class WindowList(BaseModel):
    windows: list[WindowItem]
    total: int
    has_more: bool


class KvCache(BaseModel):
    block_count: int | None
    total_size_bytes: int | None
    storage_tier: str | None
    hit_rate: float | None
    tiers: dict[str, int] | None


class Timestamps(BaseModel):
    created_at: str | None
    updated_at: str | None
    frozen_at: str | None
    thawed_at: str | None


class Lineage(BaseModel):
    parent: str | None
    children: list[str]


class Block(BaseModel):
    hash: str
    tokens: int
    size_bytes: int
    storage_tier: str | None


class Status(BaseModel):
    type: Literal["window", "session"]
    id: str
    state: str
    model: str | None
    token_count: int
    kv_cache: KvCache
    timestamps: Timestamps
    lineage: Lineage
    blocks: list[Block] | None = None


class WindowMetadata(BaseModel):
    """What `window://{name}` holds: the window's entries in list and status, and where its content can be read."""

    name: str
    description: str
    tags: list[str]
    model: str
    state: str
    session_id: str
    token_count: int
    size_bytes: int
    unique_bytes: int
    storage_tier: str | None
    tiers: dict[str, int] | None
    created_at: str
    thawed_at: str | None
    parent_window: str | None
    children: list[str]
    """The first ones."""
    child_count: int
    tokens_uri: str
    transcript_uri: str


class Deleted(BaseModel):
    window_name: str
    blocks_deleted: int
    blocks_shared: int
    space_freed_bytes: int


class Collected(BaseModel):
    """What `cwm gc` removed."""

    chunks_deleted: int
    space_freed_bytes: int
    catalog_bytes_freed: int
    warning: str | None
    """A tier that could not be looked through."""


class BadCopy(BaseModel):
    hash: str
    storage_tier: str
    fault: str
    windows: list[str]
    repaired: bool


class Verified(BaseModel):
    """What `cwm verify` has read; `bad` lists the first of the bad copies."""

    resumed: bool
    chunks: int
    copies: int
    bytes: int
    bad_copies: int
    repaired: int
    unread: int
    """Copies that a tier could not give at the moment."""
    bad: list[BadCopy]
    duration_ms: float


class Exported(BaseModel):
    """What `cwm export` has written."""

    window_name: str
    path: str
    bytes: int
    """The file's length."""
    chunks: int
    token_count: int
    restorable_tokens: int
    duration_ms: float


class Imported(BaseModel):
    """What `cwm import` has made of a file."""

    window_name: str
    path: str
    bytes: int
    chunks: int
    token_count: int
    restorable_tokens: int
    new_bytes: int
    shared_chunks: int
    """That were stored already."""
    exported_as: str
    """The window's name, its freeze's time and its session where it was exported."""
    frozen_at: str
    frozen_from: str
    duration_ms: float


class Tagged(BaseModel):
    window_name: str
    tags: list[str]
    description: str


class SessionItem(BaseModel):
    session_id: str
    state: str
    model: str
    token_count: int
    heads: int | None
    cached_tokens: int | None
    last_active_at: str | None
    created_at: str | None
    windows: list[str]
    title: str | None
    auto_freeze_at: str | None
    """When auto-freeze takes it if it stays silent."""


class SessionList(BaseModel):
    sessions: list[SessionItem]
    total: int
    has_more: bool


class NextFreeze(BaseModel):
    session_id: str
    reason: str
    due_at: str


class AutoFreezePolicy(BaseModel):
    enabled: bool
    idle_timeout_minutes: float
    token_threshold: int
    naming_pattern: str
    keep_last: int
    tags: list[str]
    next_action: NextFreeze | None


class TierStats(BaseModel):
    blocks: int | None
    bytes: int | None
    limit_bytes: int | None


class KvStore(BaseModel):
    total_blocks: int | None
    total_bytes: int | None
    hit_rate: float | None
    hits: int | None
    misses: int | None
    dedup_ratio: float | None
    tiers: dict[str, TierStats | None]


class VllmCache(BaseModel):
    """vLLM's own counters, in tokens since its start."""

    connected: bool
    prefix_cache_hit_rate: float | None
    external_hit_rate: float | None
    cached_tokens: int | None


class CacheStats(BaseModel):
    kv_store: KvStore
    vllm: VllmCache


HealthState = Literal["healthy", "degraded", "unhealthy"]


class Component(BaseModel):
    name: str
    status: HealthState
    message: str
    latency_ms: float | None


class Health(BaseModel):
    status: HealthState
    uptime_seconds: float
    version: str
    components: list[Component]


class Metric(BaseModel):
    name: str
    type: str
    value: float
    labels: dict[str, str]
    help: str


class Metrics(BaseModel):
    """`metrics` in the json format, `text` in Prometheus's."""

    metrics: list[Metric] | None = None
    text: str | None = None


def as_content(result: BaseModel) -> dict[str, Any]:
    """The result as it goes on the wire. Only a field that was not asked for has a default, and is left out."""
    return result.model_dump(mode="json", exclude_defaults=True)
