"""The operations that a client may call, and the arguments of each."""

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from cwm_connector.core.errors import Code, CWMError


class FreezeArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Freeze a session's head (the one last active, unless `head` names another) under a new window name."""

    session_id: str
    window_name: str
    description: str = ""
    tags: list[str] = []
    head: str | None = None


class ThawArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Bind a window to a session and to a fresh cache salt; with `prewarm` its chunks are read and verified now."""

    window_name: str
    new_session_id: str | None = None
    prewarm: bool = True


class CloneArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Give a window a second name. `tags=None` inherits the source's."""

    source_window: str
    target_window: str
    description: str | None = None
    tags: list[str] | None = None


class DeleteArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    window_name: str


class TagArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    window_name: str
    add: list[str] = []
    remove: list[str] = []
    description: str | None = None


class ListArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    tags: list[str] = []
    model: str | None = None
    search: str | None = None
    session_id: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    sort_by: str = "created_at"
    sort_order: str = "desc"
    limit: int = 20
    offset: int = 0


class StatusArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Exactly one of the two names."""

    window_name: str | None = None
    session_id: str | None = None
    include_blocks: bool = False


class SessionsArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    state_filter: str | None = None
    model: str | None = None
    limit: int = 50
    offset: int = 0


class TokensArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    window_name: str


class HealthArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    component: str | None = None


class VerifyArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Read and check every stored copy, from where the last walk was broken off unless `restart`.

    `rate_mb_s`: MiB a second at most, 0 for as fast as it goes.
    """

    repair: bool = False
    restart: bool = False
    rate_mb_s: float = 200.0


class ExportArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Write a window to a file of the engine's machine. `path` is absolute; what is there is kept unless `force`."""

    window_name: str
    path: str
    force: bool = False


class ImportArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Make a window of an exported file, under its own name unless `window_name`; `tags` come to the file's."""

    path: str
    window_name: str | None = None
    tags: list[str] = []


class PolicyArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Change what is given of the auto-freeze policy; `reset` forgets all earlier changes first. See auto/policy.py."""

    enabled: bool | None = None
    idle_timeout_minutes: float | None = None
    token_threshold: int | None = None
    naming_pattern: str | None = None
    keep_last: int | None = None
    tags: list[str] | None = None
    reset: bool = False


class NoArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


Args = (
    FreezeArgs
    | ThawArgs
    | CloneArgs
    | DeleteArgs
    | TagArgs
    | ListArgs
    | StatusArgs
    | SessionsArgs
    | TokensArgs
    | HealthArgs
    | VerifyArgs
    | ExportArgs
    | ImportArgs
    | PolicyArgs
    | NoArgs
)


class Op(enum.StrEnum):
    """What a client may call."""

    FREEZE = "window.freeze"
    THAW = "window.thaw"
    CLONE = "window.clone"
    DELETE = "window.delete"
    TAG = "window.tag"
    LIST = "window.list"
    STATUS = "window.status"
    TOKENS = "window.tokens"
    SESSIONS = "session.list"
    STATS = "cache.stats"
    HEALTH = "health"
    METRICS = "metrics"
    POLICY = "auto_freeze.policy"
    COLLECT = "store.collect"
    VERIFY = "store.verify"
    EXPORT = "window.export"
    IMPORT = "window.import"
    PING = "ping"


ARGUMENTS: Final[Mapping[Op, type[Args]]] = {
    Op.FREEZE: FreezeArgs,
    Op.THAW: ThawArgs,
    Op.CLONE: CloneArgs,
    Op.DELETE: DeleteArgs,
    Op.TAG: TagArgs,
    Op.LIST: ListArgs,
    Op.STATUS: StatusArgs,
    Op.TOKENS: TokensArgs,
    Op.SESSIONS: SessionsArgs,
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
    """The operation and its checked types.

    Raises: CWM-1003 for an operation, argument name or type that is not the protocol's. Names and ranges are checked
    by whoever carries the operation out.
    """
    try:
        known = Op(op)
    except ValueError:
        raise CWMError(Code.ARGUMENT, f"there is no operation {op!r}; update the client or the engine") from None
    try:
        return known, msgspec.convert(raw, ARGUMENTS[known])
    except msgspec.ValidationError as problem:
        raise CWMError(Code.ARGUMENT, f"{known.value}: {problem}; correct the argument and call again") from None
