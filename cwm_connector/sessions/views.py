"""What the engine tells about its sessions and their heads. Immutable values for any thread. Nothing here blocks."""

import enum
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cwm_connector.core.types import Micros
from cwm_connector.sessions.extras.carried import Carried
from cwm_connector.sessions.token_run import TokenRun

if TYPE_CHECKING:
    pass


class HeadKind(enum.StrEnum):
    """What a head's requests are for."""

    CONVERSATION = "conversation"
    SUBAGENT = "subagent"
    """The client named it."""
    SIDE = "side"
    """Titles, suggestions, summaries: nothing that the user reads as the conversation."""


class HeadReason(enum.StrEnum):
    """Why a freeze takes this head."""

    sentence: str

    def __new__(cls, name: str, sentence: str) -> "HeadReason":
        reason = str.__new__(cls, name)
        reason._value_ = name
        reason.sentence = sentence
        return reason

    ASKED = "asked", "it is the head that was asked for"
    ONLY = "only", "it is the session's only head"
    MAIN = "main", "it is the conversation that was continued last"
    UNFINISHED = "unfinished", "no prompt of the session was computed to its end yet, and it is the longest"
    SUBAGENT = "subagent", "the session has no head but subagents, and this one was active last"
    SIDE = "side", "the session has no head but side requests, and this one was active last"


@dataclass(frozen=True, slots=True)
class HeadSummary:
    """A head that a freeze did not take."""

    head: str
    token_count: int
    last_active_at: Micros
    title: str | None = field(repr=False)
    kind: HeadKind


@dataclass(frozen=True, slots=True)
class HeadSnapshot:
    """A head at one instant: the tokens whose KV was computed, and vLLM's hashes of the full blocks among them."""

    session_id: str
    head: str
    model: str
    tokens: TokenRun = field(repr=False)
    block_hashes: Sequence[bytes] = field(repr=False)
    cache_salt: str | None = field(repr=False)
    carried: Carried = field(repr=False)
    created_at: Micros
    last_active_at: Micros
    reason: HeadReason
    others: tuple[HeadSummary, ...]
    """The last active one first, at most `MAX_OTHERS`."""
    more_heads: int
    """How many further heads the session has."""
    activity: int
    """The index's count of turns when this head was last active. It tells two states of a head apart."""

    @property
    def token_ids(self) -> "array[int]":
        """Return the ids of the tokens. Not for the engine thread before another thread has read them."""
        return self.tokens.packed()


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as listed. Tokens and title are those of the default head.

    Its tokens are those of the requests that have finished. While its first request runs, they are that request's.
    """

    session_id: str
    created_at: Micros
    last_active_at: Micros
    token_count: int
    heads: tuple[str, ...]
    running: bool
    head: str
    """The default head. Empty if the session has none."""
    head_reason: HeadReason | None = None
    title: str | None = field(default=None, repr=False)
    expired: bool = False
    unfrozen_tokens: int | None = None
    """Tokens of the default head that no window holds. None without such a head."""
    head_active_at: Micros | None = None
    head_activity: int = 0
