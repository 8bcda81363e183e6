"""The result of each operation: the contract's fields, once, for the engine and for every front end.

The engine returns these structs, the control socket carries them as maps with the fields' names, and the MCP tools make
their output schemas from them. A new field is added here and where its value is computed.

None means "unknown", never zero. A field with a default is left out of the message while it has that value: an engine
that does not know the field and one that has nothing to say in it are read the same way. Fields that only a newer
engine knows are ignored. In these fields a "block" is a stored chunk, and times are ISO 8601 in UTC with `Z`.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cwm_connector.protocol.proofs import Outcome, ProofCheck, TakenProof


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of every result."""


class OtherHead(msgspec.Struct, frozen=True):
    """A head of a session that a freeze did not take."""

    head: str
    token_count: int
    last_active_at: str
    title: str | None


class Frozen(Answer, frozen=True):
    """A window that a freeze has made. The fields on heads say which one it holds, why, and which others there are."""

    window_name: str
    session_id: str
    token_count: int
    captured_tokens: int
    recomputed_tokens: int
    block_count: int
    total_size_bytes: int
    new_bytes: int
    storage_tier: str
    tiers: Annotated[dict[str, int], Meta(description="How many of the stored chunks each tier holds.")]
    parent_window: str | None
    duration_ms: float
    head: str | None = None
    head_reason: str | None = None
    other_heads: Annotated[list[OtherHead] | None, Meta(description="The last active one first.")] = None
    more_heads: Annotated[int, Meta(description="How many further heads there are.")] = 0
    proof: TakenProof | None = None
    no_proof: Annotated[str | None, Meta(description="Why a proof that was asked for was not taken.")] = None
    resumable_tokens: Annotated[int | None, Meta(description="Leading tokens that a thaw brings back.")] = None
    boundaries: Annotated[list[int] | None, Meta(description="The only positions at which it can be resumed.")] = None
    not_resumable: Annotated[str | None, Meta(description="Why the last tokens are computed again.")] = None


class TimedFreeze(Frozen, frozen=True, kw_only=True):
    """The engine's answer to a freeze, with a measurement that only benchmarks read."""

    capture_ms: Annotated[float, Meta(description="From the call to the last block read from the KV cache.")]


class ReplyTokens(msgspec.Struct, frozen=True):
    """Token counts of a reply, by vLLM."""

    prompt: int
    cached: int | None
    generated: int


class LoadPlan(msgspec.Struct, frozen=True):
    """How the next request gets the window's tokens."""

    loaded: int
    computed: int
    because: str


class Thawed(Answer, frozen=True):
    """A window that a session can load. The client that thaws adds the addresses and the reply."""

    session_id: str
    cache_salt: str
    window_name: str
    token_count: int
    restorable_tokens: int
    restored_by_tier: Annotated[dict[str, int], Meta(description="Tokens by the tier they were read from.")]
    restoration_time_ms: float
    partial: bool
    warning: str | None
    recompute_is_faster: bool | None
    load: LoadPlan | None = None
    proof: Outcome | None = None
    proof_check: ProofCheck | None = None
    tokens_uri: Annotated[str, Meta(description="The resource with the window's exact token ids.")] = ""
    transcript_uri: str = ""
    reply: str | None = None
    reply_finish_reason: Annotated[str | None, Meta(description="`length`: the reply was cut at max_tokens.")] = None
    reply_tokens: ReplyTokens | None = None


class Proved(Answer, frozen=True):
    """A window's proof, repeated."""

    window_name: str
    token_count: int
    proof: Outcome
    proof_check: ProofCheck
    duration_ms: float


class Warmed(Answer, frozen=True):
    """A window whose chunks are in CPU memory, as far as they could be verified and fit."""

    window_name: str
    token_count: int
    ready_tokens: int
    read_by_tier: dict[str, int]
    duration_ms: float
    warning: str | None


class Cloned(Answer, frozen=True):
    """A second name for a window's content."""

    source_window: str
    target_window: str
    shared_blocks: int
    new_bytes: int


class WindowItem(Answer, frozen=True):
    """One entry of a list of windows. Of a damaged window only the name is known."""

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


class WindowList(Answer, frozen=True):
    """One page of the windows that match."""

    windows: list[WindowItem]
    total: int
    has_more: bool
    next: str | None = None


class KvCache(msgspec.Struct, frozen=True):
    """A window's stored bytes. All None for a session, of which nothing is stored but its windows."""

    block_count: int | None
    total_size_bytes: int | None
    storage_tier: str | None
    hit_rate: float | None
    tiers: dict[str, int] | None


class Timestamps(msgspec.Struct, frozen=True):
    """When a window or session was made, changed, last frozen and last thawed."""

    created_at: str | None
    updated_at: str | None
    frozen_at: str | None
    thawed_at: str | None


class Lineage(msgspec.Struct, frozen=True):
    """The window that this one was made from, and those made from it. For a session: its windows."""

    parent: str | None
    children: list[str]


class ImportOrigin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an imported window came from."""

    exported_as: Annotated[str, Meta(description="The window's name where it was exported.")]
    frozen_from: Annotated[str, Meta(description="The session it was frozen from there.")]
    resharded_from: Annotated[int | None, Meta(description="Ranks that its KV was computed on.")] = None


class Block(msgspec.Struct, frozen=True):
    """One stored chunk."""

    hash: str
    tokens: int
    size_bytes: int
    storage_tier: str | None


class FreezeProgress(msgspec.Struct, frozen=True):
    """How far a freeze that is under way has come."""

    stage: str
    done: Annotated[int, Meta(description="Chunks stored.")]
    total: int | None
    started_at: str


class Status(Answer, frozen=True):
    """Details of one window or one session. A window in the state `freezing` does not exist yet."""

    type: Literal["window", "session"]
    id: str
    state: str
    model: str | None
    token_count: int | None
    kv_cache: KvCache
    timestamps: Timestamps
    lineage: Lineage
    blocks: list[Block] | None = None
    has_more: Annotated[bool | None, Meta(description="There are chunks after these.")] = None
    next: str | None = None
    proof: TakenProof | None = None
    progress: FreezeProgress | None = None
    description: str | None = None
    tags: list[str] | None = None
    session_id: Annotated[str | None, Meta(description="The session that the window was frozen from.")] = None
    head: str | None = None
    restorable_tokens: int | None = None
    unique_bytes: Annotated[int | None, Meta(description="What deleting the window would free.")] = None
    private: bool | None = None
    made_by: Literal["freeze", "clone", "import"] | None = None
    origin: Annotated[ImportOrigin | None, Meta(description="If it, or what it was cloned from, was imported.")] = None


class WindowTokens(Answer, frozen=True):
    """A window's token ids. They are what somebody wrote, so they stay out of the struct's text form."""

    window_name: str
    token_ids: Annotated[bytes, Meta(description="Little-endian int32.")]

    def __repr__(self) -> str:
        return f"WindowTokens(window_name={self.window_name!r})"


class Deleted(Answer, frozen=True):
    """A window that is gone."""

    window_name: str
    blocks_deleted: int
    blocks_shared: int
    space_freed_bytes: int


class Collected(Answer, frozen=True):
    """Space that `cwm gc` has reclaimed."""

    chunks_deleted: int
    space_freed_bytes: int
    catalog_bytes_freed: int
    warning: Annotated[str | None, Meta(description="A tier that could not be searched.")]


class BadCopy(msgspec.Struct, frozen=True):
    """A stored copy of a chunk that failed its check."""

    hash: str
    storage_tier: str
    fault: str
    windows: list[str]
    repaired: bool


class Verified(Answer, frozen=True):
    """The outcome of one pass of `cwm verify` over every stored copy."""

    resumed: bool
    chunks: int
    copies: int
    bytes: int
    bad_copies: int
    repaired: int
    unread: Annotated[int, Meta(description="Copies that a tier could not return at the moment.")]
    bad: Annotated[list[BadCopy], Meta(description="The first of the bad copies.")]
    duration_ms: float


class Exported(Answer, frozen=True):
    """A file that `cwm export` has written."""

    window_name: str
    path: str
    bytes: Annotated[int, Meta(description="The file's length.")]
    chunks: int
    token_count: int
    restorable_tokens: int
    duration_ms: float


class Imported(Answer, frozen=True):
    """A window that `cwm import` has made from a file."""

    window_name: str
    path: str
    bytes: int
    chunks: int
    token_count: int
    restorable_tokens: int
    new_bytes: int
    shared_chunks: Annotated[int, Meta(description="Chunks that were already stored.")]
    exported_as: Annotated[str, Meta(description="The window's name where it was exported.")]
    frozen_at: Annotated[str, Meta(description="When it was frozen there.")]
    frozen_from: Annotated[str, Meta(description="The session it was frozen from there.")]
    duration_ms: float


class Tagged(Answer, frozen=True):
    """A window's labels after the change."""

    window_name: str
    tags: list[str]
    description: str


class SessionItem(msgspec.Struct, frozen=True):
    """One entry of a list of sessions."""

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
    auto_freeze_at: Annotated[str | None, Meta(description="When auto-freeze saves it if it stays idle.")]
    head: Annotated[str | None, Meta(description="What a freeze without a head takes.")] = None
    head_reason: str | None = None
    head_names: Annotated[list[str] | None, Meta(description="All heads, if there are several.")] = None


class SessionList(Answer, frozen=True):
    """One page of the sessions that match."""

    sessions: list[SessionItem]
    total: int
    has_more: bool
    next: str | None = None


class NextFreeze(msgspec.Struct, frozen=True, omit_defaults=True):
    """The automatic freeze that comes next. `head` is left out if it is the session's default head."""

    session_id: str
    reason: str
    due_at: str
    head: str | None = None


class AutoFreezePolicy(Answer, frozen=True):
    """The auto-freeze policy in force."""

    enabled: bool
    idle_timeout_minutes: float
    token_threshold: int
    naming_pattern: str
    keep_last: int
    tags: list[str]
    next_action: NextFreeze | None


class Resumable(Answer, frozen=True):
    """What a session that is resumed can load: windows that this engine can use, the newest first."""

    automatic: bool
    """Whether its windows load without a thaw."""
    window_name: str | None
    """The newest window of the session that is not private. None if there is none."""
    restorable_tokens: int
    """Tokens that this window restores."""
    others: list[str]
    """A few windows of other sessions, if the session has none."""


class EngineInfo(Answer, frozen=True):
    """The answer to a ping."""

    model: str
