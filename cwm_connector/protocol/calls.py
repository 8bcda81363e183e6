"""The operations that a client may call, and the arguments of each: once, for the engine and for every front end.

The engine checks types and ranges with these structs. The MCP tools make their input schemas from them, and check names
too before they call. A front end may add arguments of its own in a derived struct.
"""

import enum
from collections.abc import Mapping
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_description, check_tags, check_window_name
from cwm_connector.core.speaker import check_session_id
from cwm_connector.core.types import TierName

CHECK: Final = "check"
"""The key in a type's `Meta.extra` of the function that checks its values. It returns the value to use."""
ORDER: Final = "order"
"""The key in a schema made by msgspec that has an enum's values in the order of their `Literal`."""
MAX_LIMIT: Final = 100
"""Entries of one page."""
COMPONENTS: Final = ("vllm", "engine", "catalog", *(tier.value for tier in TierName))
"""The parts of the system whose health can be asked for."""
MAX_OFFSET: Final = (1 << 63) - 1


def _check_offset(offset: int) -> int:
    """Raise `Code.ARGUMENT` for what SQLite can't hold. A `maximum` in the schema would tell a model nothing."""
    if offset > MAX_OFFSET:
        raise CWMError(Code.ARGUMENT, "the offset is larger than any list; give 0 to begin at the start")
    return offset


def check_component(name: str) -> str:
    """Return the component, in lower case. Raise `Code.ARGUMENT` for one that there is not."""
    if name.strip().lower() not in COMPONENTS:
        raise CWMError(
            Code.ARGUMENT,
            f"component must be one of {', '.join(COMPONENTS)}, not {name[:80]!r}; correct it and call again",
            argument="component",
        )
    return name.strip().lower()


def _in_order(choices: object) -> Meta:
    """Return metadata that keeps the order of a `Literal`, which msgspec sorts in its schemas."""
    return Meta(extra_json_schema={ORDER: list(get_args(choices))})


SessionId = Annotated[str, Meta(extra={CHECK: check_session_id})]
WindowName = Annotated[str, Meta(extra={CHECK: check_window_name})]
Tags = Annotated[list[str], Meta(extra={CHECK: check_tags})]
Description = Annotated[str, Meta(extra={CHECK: check_description})]
Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Meta(ge=0, extra={CHECK: _check_offset})]
SortKey = Literal["name", "created_at", "token_count", "size"]
StateName = Literal["active", "frozen", "thawed", "expired"]
ComponentName = Annotated[str, Meta(extra={CHECK: check_component}, extra_json_schema={"enum": list(COMPONENTS)})]


class Args(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Base of every operation's arguments."""


class FreezeArgs(Args, frozen=True):
    """Freeze a session under a new window name."""

    session_id: SessionId
    window_name: WindowName
    description: Description = ""
    tags: Tags = []
    head: Annotated[str | None, Meta(description="One of several heads. Default: the conversation.")] = None
    prove: Annotated[bool, Meta(description="Take a proof for thaws to repeat.")] = False


class ThawArgs(Args, frozen=True):
    """Bind a window to a session and to a new cache salt."""

    window_name: WindowName
    new_session_id: SessionId | None = None
    prewarm: Annotated[bool, Meta(description="Read and verify the window's chunks now.")] = True
    prove: Annotated[bool, Meta(description="Repeat the freeze's proof.")] = False


class ProveArgs(Args, frozen=True):
    """Repeat a window's proof."""

    window_name: WindowName


class WarmArgs(Args, frozen=True):
    """Bring a window's chunks into CPU memory."""

    window_name: WindowName


class CloneArgs(Args, frozen=True):
    """Give a window a second name. What is None is inherited from the source."""

    source_window: WindowName
    target_window: WindowName
    description: Description | None = None
    tags: Tags | None = None


class DeleteArgs(Args, frozen=True):
    """Delete a window."""

    window_name: WindowName


class TrashArgs(Args, frozen=True):
    """Delete a window so that it can be brought back for a while."""

    window_name: WindowName
    command: Annotated[str, Meta(max_length=64, description="An id. Windows with the same come back together.")]


class RestoreArgs(Args, frozen=True):
    """Bring a window back, by default all that the last command deleted."""

    window_name: WindowName | None = None
    new_name: WindowName | None = None


class TagArgs(Args, frozen=True):
    """Add and remove tags, and replace the description and the name unless they are None."""

    window_name: WindowName
    add: Tags = []
    remove: Tags = []
    description: Description | None = None
    new_name: WindowName | None = None


class ListArgs(Args, frozen=True):
    """Select, sort and page the list of windows. Times are ISO 8601 with any offset."""

    tags: Annotated[Tags, Meta(description="All of them must match.")] = []
    model: str | None = None
    search: Annotated[str | None, Meta(description="Words in the name, the description or the tags.")] = None
    session_id: SessionId | None = None
    created_after: str | None = None
    created_before: str | None = None
    sort_by: Annotated[SortKey, _in_order(SortKey)] = "created_at"
    sort_order: Literal["asc", "desc"] = "desc"
    limit: Limit = 20
    offset: Offset = 0


class StatusArgs(Args, frozen=True):
    """Ask for details of a window or a session."""

    window_name: WindowName | None = None
    session_id: SessionId | None = None
    include_blocks: bool = False

    def __post_init__(self) -> None:
        """Raise `Code.ARGUMENT` unless exactly one of the two names is given."""
        if (self.window_name is None) == (self.session_id is None):
            raise CWMError(Code.ARGUMENT, "give either window_name or session_id, and not both")


class SessionsArgs(Args, frozen=True):
    """Select and page the list of sessions."""

    state_filter: Annotated[StateName, _in_order(StateName)] | None = None
    model: str | None = None
    limit: Limit = 50
    offset: Offset = 0


class TokensArgs(Args, frozen=True):
    """Ask for a window's exact token ids."""

    window_name: WindowName


class HealthArgs(Args, frozen=True):
    """Ask for the health of all components, or of one."""

    component: ComponentName | None = None


class VerifyArgs(Args, frozen=True):
    """Read and check every stored copy, from where the last pass stopped unless `restart`."""

    repair: bool = False
    restart: bool = False
    rate_mb_s: Annotated[float, Meta(description="MiB a second at most. 0 is as fast as it goes.")] = 200.0


class ExportArgs(Args, frozen=True):
    """Write a window to a file on the engine's machine."""

    window_name: WindowName
    path: Annotated[str, Meta(description="Absolute.")]
    force: Annotated[bool, Meta(description="Replace a file that is there.")] = False


class ImportArgs(Args, frozen=True):
    """Make a window from an exported file."""

    path: Annotated[str, Meta(description="Absolute.")]
    window_name: Annotated[WindowName | None, Meta(description="Default: the name in the file.")] = None
    tags: Annotated[Tags, Meta(description="Added to those in the file.")] = []
    reshard: Annotated[bool, Meta(description="Take a file of another tensor parallel size.")] = False


class PolicyChange(Args, frozen=True):
    """Change the given fields of the auto-freeze policy."""

    enabled: bool | None = None
    idle_timeout_minutes: float | None = None
    token_threshold: int | None = None
    naming_pattern: str | None = None
    keep_last: int | None = None
    tags: Tags | None = None


class PolicyArgs(PolicyChange, frozen=True):
    """Change the policy, after a return to the settings if `reset`."""

    reset: bool = False


class ResumableArgs(Args, frozen=True):
    """Ask what a session that is resumed can load."""

    session_id: SessionId


class NoArgs(Args, frozen=True):
    """Ask for something that needs no argument."""


class Op(enum.StrEnum):
    """An operation that a client may call."""

    FREEZE = "window.freeze"
    THAW = "window.thaw"
    PROVE = "window.prove"
    WARM = "window.warm"
    CLONE = "window.clone"
    DELETE = "window.delete"
    TRASH = "window.trash"
    RESTORE = "window.restore"
    TRASH_LIST = "trash.list"
    TAG = "window.tag"
    LIST = "window.list"
    STATUS = "window.status"
    TOKENS = "window.tokens"
    SESSIONS = "session.list"
    RESUMABLE = "session.resumable"
    STATS = "cache.stats"
    HEALTH = "health"
    METRICS = "metrics"
    POLICY = "auto_freeze.policy"
    COLLECT = "store.collect"
    VERIFY = "store.verify"
    EXPORT = "window.export"
    IMPORT = "window.import"
    PING = "ping"


CARRIED_ON: Final = frozenset({Op.FREEZE})
"""Operations that go on when their client leaves or its time is over. What they save can be lost for ever, and every
other operation can be called again. A Cancel message ends them too."""

ARGUMENTS: Final[Mapping[Op, type[Args]]] = {
    Op.FREEZE: FreezeArgs,
    Op.THAW: ThawArgs,
    Op.PROVE: ProveArgs,
    Op.WARM: WarmArgs,
    Op.CLONE: CloneArgs,
    Op.DELETE: DeleteArgs,
    Op.TRASH: TrashArgs,
    Op.RESTORE: RestoreArgs,
    Op.TRASH_LIST: NoArgs,
    Op.TAG: TagArgs,
    Op.LIST: ListArgs,
    Op.STATUS: StatusArgs,
    Op.TOKENS: TokensArgs,
    Op.SESSIONS: SessionsArgs,
    Op.RESUMABLE: ResumableArgs,
    Op.STATS: NoArgs,
    Op.HEALTH: HealthArgs,
    Op.METRICS: NoArgs,
    Op.POLICY: PolicyArgs,
    Op.COLLECT: NoArgs,
    Op.VERIFY: VerifyArgs,
    Op.EXPORT: ExportArgs,
    Op.IMPORT: ImportArgs,
    Op.PING: NoArgs,
}


def parse_arguments(op: str, raw: object) -> tuple[Op, Args]:
    """Return the operation, and its arguments with their types and ranges checked.

    The operation itself checks the names in them.
    Raises: `Code.ARGUMENT` for an operation, an argument or a type that the protocol does not have.
    """
    try:
        known = Op(op)
    except ValueError:
        raise CWMError(Code.ARGUMENT, f"there is no operation {op!r}; update the client or the engine") from None
    try:
        return known, msgspec.convert(raw, ARGUMENTS[known])
    except msgspec.ValidationError as problem:
        raise CWMError(Code.ARGUMENT, f"{known.value}: {problem}; correct the argument and call again") from None
