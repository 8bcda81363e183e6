"""Requests as a session index reads them, and an index to give them to."""

from dataclasses import dataclass, field
from typing import Any

from cwm_connector.core.types import Micros
from cwm_connector.sessions.index import SessionIndex

BLOCK = 4


@dataclass
class Request:
    """The fields of vLLM's Request that a session index reads (test_compat.py holds vLLM to having them)."""

    request_id: str
    all_token_ids: list[int]
    session_id: str | None = "alice"
    cache_salt: str | None = None
    num_computed_tokens: int = 0
    num_in_flight_tokens: int = 0
    lora_request: Any = None
    mm_features: list[Any] = field(default_factory=list)
    prompt_embeds: Any = None

    def __post_init__(self) -> None:
        self.num_computed_tokens = self.num_computed_tokens or len(self.all_token_ids) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def block_hashes(self) -> list[bytes]:
        ends = range(BLOCK, len(self.all_token_ids) + 1, BLOCK)
        return [repr((self.cache_salt, self.all_token_ids[:end])).encode() for end in ends]


def index(thawed: dict[bytes, str] | None = None, block_tokens: int = BLOCK, **more: Any) -> SessionIndex:
    return SessionIndex("model", block_tokens, (thawed or {}).get, **more)


def finish(sessions: SessionIndex, request: Any) -> None:
    sessions.request_added(request)
    sessions.request_finished(request)


def nobody(request_id: str, token_ids: list[int], **more: Any) -> Request:
    return Request(request_id, token_ids, session_id=None, **more)


class Clock:
    """A clock that moves on by a microsecond with each call."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> Micros:
        self.now += 1
        return Micros(self.now)
