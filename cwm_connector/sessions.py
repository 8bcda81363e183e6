"""Who is speaking, and the chain of tokens and blocks of each of a session's heads.

Engine thread only; what is handed out (`HeadSnapshot`) is immutable and may go anywhere. A session is known by the
request's session id, else by its cache salt, of which only a hash is ever shown.

One session can carry several unrelated chains (subagents, title generation, a branch taken after a thaw): each is a
head. A finished request extends the head with which it shares at least half of the head's blocks, else it opens one.
"""

import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cwm_connector.protocol import Code, CWMError, is_session_id
from cwm_connector.terms import Micros

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.request import Request

MAX_SESSIONS: Final = 4096
MAX_HEADS: Final = 16


def now_micros() -> Micros:
    return Micros(time.time_ns() // 1000)


def salt_hash(cache_salt: str) -> bytes:
    """32 bytes; the only form in which a salt is kept or compared."""
    return hashlib.sha256(cache_salt.encode()).digest()


def session_of_salt(cache_salt: str) -> str:
    """The id of a session that is known by its salt alone."""
    return f"salt-{salt_hash(cache_salt).hex()[:24]}"


@dataclass(frozen=True, slots=True)
class HeadSnapshot:
    """A head at one instant: every token whose KV was computed, and vLLM's hashes of the full blocks among them."""

    session_id: str
    head: str
    model: str
    token_ids: "array[int]" = field(repr=False)
    block_hashes: "tuple[BlockHash, ...]" = field(repr=False)
    cache_salt: str | None = field(repr=False)
    text_only: bool
    created_at: Micros
    last_active_at: Micros


@dataclass(slots=True)
class _Head:
    name: str
    token_ids: "array[int]"
    block_hashes: "tuple[BlockHash, ...]"
    cache_salt: str | None
    text_only: bool
    last_active_at: Micros


@dataclass(slots=True)
class _Session:
    session_id: str
    created_at: Micros
    last_active_at: Micros
    heads: "OrderedDict[str, _Head]" = field(default_factory=OrderedDict)
    running: "dict[str, Request]" = field(default_factory=dict)
    opened: int = 0


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as listed. `token_count` is that of the head last active."""

    session_id: str
    created_at: Micros
    last_active_at: Micros
    token_count: int
    heads: tuple[str, ...]
    running: bool
    block_hashes: "tuple[BlockHash, ...]" = field(repr=False)


def _common(ours: "tuple[BlockHash, ...]", theirs: "tuple[BlockHash, ...]") -> int:
    """How many leading hashes agree. Hashes are chained, so the last equal one decides: a binary search."""
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[middle - 1] == theirs[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


class SessionIndex:
    """The sessions of this engine since its start, the longest unused dropped beyond `MAX_SESSIONS`."""

    def __init__(self, model: str, block_tokens: int, thawed_into: Callable[[bytes], str | None]) -> None:
        """`thawed_into` tells the session of a thaw's salt hash, or None for a salt that no thaw made."""
        self._model = model
        self._block_tokens = block_tokens
        self._thawed_into = thawed_into
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def identify(self, request: "Request") -> str | None:
        """The session of a request, or None where it says nothing."""
        if request.session_id and is_session_id(request.session_id):
            return str(request.session_id)
        if request.cache_salt:
            return self._thawed_into(salt_hash(request.cache_salt)) or session_of_salt(request.cache_salt)
        return None

    def request_added(self, request: "Request") -> None:
        if (name := self.identify(request)) is not None:
            session = self._open(name)
            session.running[request.request_id] = request

    def request_finished(self, request: "Request") -> None:
        """Takes over the request's computed tokens as the new end of one of its session's heads."""
        name = self.identify(request)
        if name is None:
            return
        session = self._open(name)
        session.running.pop(request.request_id, None)
        chain = self._chain(request)
        if not chain[1]:
            return  # not one full block was computed: nothing that could be frozen
        head = self._head_for(session, chain[1])
        head.token_ids, head.block_hashes = chain
        head.cache_salt = request.cache_salt
        head.text_only = head.text_only and is_text_only(request)
        head.last_active_at = session.last_active_at
        session.heads.move_to_end(head.name)
        while len(session.heads) > MAX_HEADS:
            session.heads.popitem(last=False)

    def snapshot(self, session_id: str, head: str | None) -> HeadSnapshot:
        """The head named, or the one last active (a running request counts as soon as it is ahead of what it extends).

        `session_id` may also be the cache salt that the session is known by.
        Raises: CWM-2001 where there is no such session or head; CWM-3001 where no full block of it was computed yet.
        """
        session = self._sessions.get(session_id) or self._sessions.get(session_of_salt(session_id))
        if session is None:
            raise CWMError(
                Code.SESSION_NOT_FOUND,
                f"this engine knows no session {session_id!r}; session_list shows the ones it knows",
                session_id=session_id,
            )
        candidates = {each.name: each for each in session.heads.values()}
        for request in session.running.values():
            tokens, hashes = self._chain(request)
            extended = self._nearest(session, hashes)
            if hashes and (extended is None or len(hashes) > len(extended.block_hashes)):
                name = extended.name if extended else f"h{session.opened + 1}"
                candidates.pop(name, None)
                candidates[name] = _Head(
                    name, tokens, hashes, request.cache_salt, is_text_only(request), session.last_active_at
                )
        if not candidates:
            raise CWMError(
                Code.STATE,
                f"session {session_id!r} has no full block of {self._block_tokens} tokens yet; freeze it later",
                session_id=session_id,
            )
        if head is not None and head not in candidates:
            raise CWMError(
                Code.SESSION_NOT_FOUND,
                f"session {session_id!r} has no head {head!r}; it has {', '.join(candidates)}",
                session_id=session_id,
                head=head,
            )
        chosen = candidates[head] if head is not None else next(reversed(candidates.values()))
        return HeadSnapshot(
            session.session_id,
            chosen.name,
            self._model,
            chosen.token_ids,
            chosen.block_hashes,
            chosen.cache_salt,
            chosen.text_only,
            session.created_at,
            chosen.last_active_at,
        )

    def views(self) -> tuple[SessionView, ...]:
        """Last active first."""
        return tuple(self._view(session) for session in reversed(self._sessions.values()))

    def _view(self, session: _Session) -> SessionView:
        newest = next(reversed(session.heads.values()), None)
        return SessionView(
            session.session_id,
            session.created_at,
            session.last_active_at,
            len(newest.token_ids) if newest else 0,
            tuple(session.heads),
            bool(session.running),
            newest.block_hashes if newest else (),
        )

    def _open(self, name: str) -> _Session:
        now = now_micros()
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(name, now, now)
            while len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        session.last_active_at = now
        self._sessions.move_to_end(name)
        return session

    def _chain(self, request: "Request") -> "tuple[array[int], tuple[BlockHash, ...]]":
        """Computed tokens and the hashes of their full blocks.

        vLLM counts tokens of steps that are still under way as computed; they are left out.
        """
        computed = min(request.num_computed_tokens - request.num_in_flight_tokens, request.num_tokens)
        tokens = array("i", request.all_token_ids[:computed])
        return tokens, tuple(request.block_hashes[: computed // self._block_tokens])

    @staticmethod
    def _nearest(session: _Session, hashes: "tuple[BlockHash, ...]") -> _Head | None:
        """The head of which `hashes` repeats at least half, the most of it first."""
        shared = [(_common(each.block_hashes, hashes), each) for each in session.heads.values()]
        fitting = [(count, each) for count, each in shared if count and 2 * count >= len(each.block_hashes)]
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else None

    def _head_for(self, session: _Session, hashes: "tuple[BlockHash, ...]") -> _Head:
        found = self._nearest(session, hashes)
        if found is None:
            session.opened += 1
            found = _Head(f"h{session.opened}", array("i"), (), None, True, session.last_active_at)
            session.heads[found.name] = found
        return found


def is_text_only(request: "Request") -> bool:
    """True if token ids and weights alone determine the request's KV: no adapter, no images, no embeddings."""
    return request.lora_request is None and not request.mm_features and request.prompt_embeds is None
