"""Keep the sessions of an engine, and the chain of tokens and blocks of each of their heads.

Engine thread only. Nothing here blocks. A `HeadSnapshot` is immutable and may be handed to any thread.

A session is identified by the session id of its requests. Without one it is identified by its cache salt, which is only
ever shown as a hash. A request with neither belongs to the anonymous session whose conversation it continues, or it
opens a new one (see `unnamed.py`). A request that has a session id, valid or not, or a salt is never anonymous.

A session can have several unrelated chains: subagents, title generation, a branch that begins after a thaw. Each of
them is a head. The client can name the head in the session id, as `SESSION/HEAD`. The middleware does this for
subagents. Otherwise a finished request extends the head of which it repeats at least half of the blocks, or it opens a
new head.

A session expires when it was unused for `EXPIRES_AFTER` and the prefix cache has lost its beginning. Nothing of it
could be hit then. It stays in the list, but its tokens are dropped and it can't be frozen. Expiry is checked whenever
sessions are listed, and a new request revives the session. The number of sessions is limited. Anonymous sessions have a
lower limit and a limit on their tokens, because a benchmark opens thousands of them. The session that was unused for
longest is dropped first.
"""

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.speaker import Speaker, parse_speaker
from cwm_connector.core.types import Micros, now_micros, salt_hash
from cwm_connector.sessions.heads import Chain, Heads, default_head
from cwm_connector.sessions.unnamed import PREFIX as ANONYMOUS
from cwm_connector.sessions.unnamed import Beginnings

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.request import Request

MAX_SESSIONS: Final = 4096
"""Sessions with an id or a salt."""
MAX_ANONYMOUS: Final = 1024
"""Anonymous sessions."""
MAX_ANONYMOUS_TOKENS: Final = 8_000_000
"""Tokens in all anonymous sessions together: 32 MB of ids and as much of hashes, at 16 tokens a block."""
EXPIRES_AFTER: Final = 24 * 3600 * 1_000_000
"""Microseconds."""

RequestTitle = Callable[["array[int]", Callable[[str], None]], None]
"""Takes the token ids and a function to call with the title. See `Titler.request_title`."""

Continued = Callable[[Sequence[int], int], str | None]
"""Takes the token ids and the tokens per block. See `ThawBindings.continued_by`."""


def session_of_salt(cache_salt: str) -> str:
    """Return the id of a session that is identified by its salt alone."""
    return f"salt-{salt_hash(cache_salt).hex()[:24]}"


def is_text_only(request: "Request") -> bool:
    """Return whether the token ids and the weights alone determine the KV: no adapter, no images, no embeddings."""
    return request.lora_request is None and not request.mm_features and request.prompt_embeds is None


@dataclass(frozen=True, slots=True)
class HeadSnapshot:
    """A head at one instant: the tokens whose KV was computed, and vLLM's hashes of the full blocks among them."""

    session_id: str
    head: str
    model: str
    token_ids: "array[int]" = field(repr=False)
    block_hashes: "tuple[BlockHash, ...]" = field(repr=False)
    cache_salt: str | None = field(repr=False)
    text_only: bool
    created_at: Micros
    last_active_at: Micros


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as listed. Tokens, hashes and title are those of the default head."""

    session_id: str
    created_at: Micros
    last_active_at: Micros
    token_count: int
    heads: tuple[str, ...]
    running: bool
    block_hashes: "tuple[BlockHash, ...]" = field(repr=False)
    title: str | None = field(default=None, repr=False)
    expired: bool = False


@dataclass(slots=True)
class _Session:
    session_id: str
    created_at: Micros
    last_active_at: Micros
    heads: Heads = field(default_factory=Heads)
    running: "dict[str, tuple[Request, str | None]]" = field(default_factory=dict)
    """By request id: the request, and the head that its client named."""
    expired: SessionView | None = None
    """The session as it was listed when its tokens were dropped. None if it has not expired."""


class SessionIndex:
    """The sessions of this engine since its start. The module's docstring says which are kept."""

    def __init__(
        self,
        model: str,
        block_tokens: int,
        thawed_into: Callable[[bytes], str | None],
        request_title: RequestTitle | None = None,
        clock: Callable[[], Micros] = now_micros,
        continued: Continued | None = None,
    ) -> None:
        """Start without sessions.

        `thawed_into` returns the session for which a thaw made the salt with this hash, or None if no thaw made it.
        `continued` returns the anonymous session whose thawed window the tokens continue.
        """
        self._model = model
        self._block_tokens = block_tokens
        self._thawed_into = thawed_into
        self._request_title = request_title
        self._clock = clock
        self._continued = continued
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._anonymous: OrderedDict[str, _Session] = OrderedDict()
        self._anonymous_tokens = 0
        self._beginnings = Beginnings(block_tokens)
        self._speaking: dict[str, Speaker] = {}

    # --- requests ---

    def request_added(self, request: "Request") -> None:
        """Assign the request to its session, which is opened if it is new."""
        speaker = self._named_speaker(request)
        if speaker is not None and speaker.session_id is not None:
            session = self._open(speaker.session_id)
        elif _is_no_id(request.session_id) or not is_text_only(request):
            return  # its session id is not valid, or its KV could never be frozen
        else:
            session = self._open_anonymous(request)
            speaker = Speaker(session.session_id)
        self._speaking[request.request_id] = speaker
        session.running[request.request_id] = (request, speaker.head)

    def request_finished(self, request: "Request") -> None:
        """Make the request's computed tokens the new end of one of its session's heads."""
        speaker = self._speaking.pop(request.request_id, None)
        session = None if speaker is None or speaker.session_id is None else self._known(speaker.session_id)
        if speaker is None or session is None:
            return
        session.running.pop(request.request_id, None)
        before = session.heads.tokens
        self._touch(session)
        computed = self._chain(request)
        # Without a full block there is nothing to freeze.
        if computed.block_hashes:
            head = session.heads.extend(computed, speaker.head, session.last_active_at)
            if head.title is None and self._request_title is not None:
                self._request_title(computed.token_ids, lambda title: setattr(head, "title", title))
        if session.session_id in self._anonymous:
            self._anonymous_tokens += session.heads.tokens - before
            if not session.heads and not session.running:
                self._drop_anonymous(session.session_id)
            self._trim_anonymous()

    def session_id_of(self, request: "Request") -> str | None:
        """Return the session whose windows the request may load: the one it names, or its anonymous session.

        Return None for a request with a salt alone. It may load only what was thawed for that salt.
        """
        named = parse_speaker(request.session_id)
        if _is_no_id(request.session_id) or (named is not None and named.session_id is not None):
            return None if named is None else named.session_id
        speaker = self._speaking.get(request.request_id)
        return None if request.cache_salt or speaker is None else speaker.session_id

    # --- queries ---

    def snapshot(self, session_id: str, head: str | None) -> HeadSnapshot:
        """Return the named head, or the default head if `head` is None.

        A running request counts as soon as it is ahead of the head that it extends. `session_id` may also be the cache
        salt that identifies the session.
        Raises `Code.SESSION_NOT_FOUND` if there is no such session or head, `Code.STATE` if no full block has been
        computed yet.
        """
        session = self._known(session_id) or self._known(session_of_salt(session_id))
        if session is None or session.expired is not None:
            state = "has no session" if session is None else "has dropped the tokens of the expired session"
            raise CWMError(
                Code.SESSION_NOT_FOUND,
                f"this engine {state} {session_id!r}; session_list shows the sessions that it has",
                session_id=session_id,
            )
        running = [(self._chain(request), name) for request, name in session.running.values()]
        candidates = session.heads.with_running(running, session.last_active_at)
        chosen = default_head(candidates.values()) if head is None else candidates.get(head)
        if not candidates:
            raise CWMError(
                Code.STATE,
                f"session {session_id!r} has no full block of {self._block_tokens} tokens yet; freeze it later",
                session_id=session_id,
            )
        if chosen is None:
            raise CWMError(
                Code.SESSION_NOT_FOUND,
                f"session {session_id!r} has no head {head!r}; it has {', '.join(candidates)}",
                session_id=session_id,
                head=head,
            )
        return HeadSnapshot(
            session_id=session.session_id,
            head=chosen.name,
            model=self._model,
            token_ids=chosen.chain.token_ids,
            block_hashes=chosen.chain.block_hashes,
            cache_salt=chosen.chain.cache_salt,
            text_only=chosen.chain.text_only,
            created_at=session.created_at,
            last_active_at=chosen.last_active_at,
        )

    def views(self) -> tuple[SessionView, ...]:
        """Return all sessions, the last active one first."""
        return tuple(_view(session) for session in sorted(self._all(), key=_last_active, reverse=True))

    def expire(self, is_cached: "Callable[[BlockHash], bool]") -> None:
        """Drop the tokens of the sessions that have expired. The module's docstring says which have."""
        latest = self._clock() - EXPIRES_AFTER
        for session in self._all():
            if session.expired is not None or session.running or session.last_active_at > latest:
                continue
            if any(is_cached(head.chain.block_hashes[0]) for head in session.heads):
                continue
            session.expired = replace(_view(session), block_hashes=(), expired=True)
            if session.session_id in self._anonymous:
                self._anonymous_tokens -= session.heads.tokens
            session.heads = Heads()

    # --- internal ---

    def _named_speaker(self, request: "Request") -> Speaker | None:
        """Return the speaker that the request names by its session id or its salt."""
        named = parse_speaker(request.session_id)
        if named is not None and named.session_id is not None:
            return named
        if request.cache_salt:
            return Speaker(self._thawed_into(salt_hash(request.cache_salt)) or session_of_salt(request.cache_salt))
        return None

    def _all(self) -> Iterator[_Session]:
        return chain(self._sessions.values(), self._anonymous.values())

    def _known(self, name: str) -> _Session | None:
        return self._sessions.get(name) or self._anonymous.get(name)

    def _open(self, name: str) -> _Session:
        if name not in self._sessions:
            # The name of an anonymous session can be read in a list. A request that uses it makes it a named session.
            self._sessions[name] = self._drop_anonymous(name) or self._new(name)
            while len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return self._touch(self._sessions[name])

    def _open_anonymous(self, request: "Request") -> _Session:
        name = self._beginnings.find(request)
        if name is None:
            name = self._session_before_restart(request) or self._new_name()
            self._beginnings.add(name, request)
            self._anonymous[name] = self._new(name)
            self._trim_anonymous()
        return self._touch(self._anonymous[name])

    def _session_before_restart(self, request: "Request") -> str | None:
        """Return the session from before a restart that the request continues, if a window was thawed into it."""
        if self._continued is None:
            return None
        name = self._continued(request.all_token_ids, self._block_tokens)
        return None if name is None or self._known(name) else name

    def _new(self, name: str) -> _Session:
        now = self._clock()
        return _Session(name, now, now)

    def _new_name(self) -> str:
        """Return a name with the time and a random part, so that two engines hardly ever choose the same name."""
        begun = datetime.fromtimestamp(self._clock() / 1e6, UTC)
        name = f"{ANONYMOUS}{begun:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        return self._new_name() if self._known(name) else name

    def _touch(self, session: _Session) -> _Session:
        session.last_active_at = self._clock()
        session.expired = None
        (self._anonymous if session.session_id in self._anonymous else self._sessions).move_to_end(session.session_id)
        return session

    def _trim_anonymous(self) -> None:
        while len(self._anonymous) > MAX_ANONYMOUS or (
            self._anonymous_tokens > MAX_ANONYMOUS_TOKENS and len(self._anonymous) > 1
        ):
            self._drop_anonymous(next(iter(self._anonymous)))

    def _drop_anonymous(self, name: str) -> _Session | None:
        session = self._anonymous.pop(name, None)
        if session is not None:
            self._beginnings.remove(name)
            self._anonymous_tokens -= session.heads.tokens
        return session

    def _chain(self, request: "Request") -> Chain:
        """Return the request's computed tokens and the hashes of their full blocks.

        vLLM counts the tokens of unfinished steps as computed. They are left out here.
        """
        computed = min(request.num_computed_tokens - request.num_in_flight_tokens, request.num_tokens)
        return Chain(
            array("i", request.all_token_ids[:computed]),
            tuple(request.block_hashes[: computed // self._block_tokens]),
            request.cache_salt,
            is_text_only(request),
        )


def _last_active(session: _Session) -> Micros:
    return session.last_active_at


def _is_no_id(text: str | None) -> bool:
    """Return whether the client sent something that can't be an id, which is not the same as sending nothing."""
    return bool(text) and parse_speaker(text) is None


def _view(session: _Session) -> SessionView:
    if session.expired is not None:
        return session.expired
    head = default_head(session.heads)
    return SessionView(
        session_id=session.session_id,
        created_at=session.created_at,
        last_active_at=session.last_active_at,
        token_count=len(head.chain.token_ids) if head else 0,
        heads=tuple(each.name for each in session.heads),
        running=bool(session.running),
        block_hashes=head.chain.block_hashes if head else (),
        title=head.title if head else None,
    )
