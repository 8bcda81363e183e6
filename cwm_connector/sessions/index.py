"""Who is speaking, and the chain of tokens and blocks of each of a session's heads.

Engine thread only; what is handed out (`HeadSnapshot`) is immutable and may go anywhere. A session is known by the
request's session id, else by its cache salt, of which only a hash is ever shown. A request that says nothing belongs to
the anonymous session whose conversation it continues, else it opens one (unnamed.py). What a request says is never
overruled: with an id, legal or not, or with a salt it is never taken for anonymous.

One session can carry several unrelated chains (subagents, title generation, a branch taken after a thaw): each is a
head. A client may name the head in the session id, as `SESSION/HEAD`; that is how the middleware tells subagents. Else
a finished request extends the head with which it shares at least half of the head's blocks, or opens one.

A session expires when it was unused for `EXPIRES_AFTER` and the prefix cache has lost its beginning, so that nothing of
it could be hit: it is still listed, its tokens are let go, and it can't be frozen any more. That is looked at whenever
sessions are listed. Speaking again revives it. Without ever expiring, sessions are bounded by number, anonymous ones
(a benchmark makes thousands) by fewer and by tokens, the longest unused dropped first.
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
from cwm_connector.core.names import is_session_id
from cwm_connector.core.types import Micros, now_micros, salt_hash
from cwm_connector.sessions.heads import Chain, Heads, default_head
from cwm_connector.sessions.unnamed import PREFIX as ANONYMOUS
from cwm_connector.sessions.unnamed import Beginnings

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.request import Request

MAX_SESSIONS: Final = 4096
MAX_ANONYMOUS: Final = 1024
MAX_ANONYMOUS_TOKENS: Final = 8_000_000
"""In all anonymous sessions together: 32 MB of ids, and as much again of hashes at 16 tokens a block."""
EXPIRES_AFTER: Final = 24 * 3600 * 1_000_000
"""Microseconds."""

RequestTitle = Callable[["array[int]", Callable[[str], None]], None]
"""(token ids, where to tell the title): see titles.Titler.request_title."""


Continued = Callable[[Sequence[int], int], str | None]
"""(token ids, tokens per block): see ThawBindings.continued_by."""


def session_of_salt(cache_salt: str) -> str:
    """The id of a session that is known by its salt alone."""
    return f"salt-{salt_hash(cache_salt).hex()[:24]}"


def is_text_only(request: "Request") -> bool:
    """True if token ids and weights alone determine the request's KV: no adapter, no images, no embeddings."""
    return request.lora_request is None and not request.mm_features and request.prompt_embeds is None


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who a request comes from: a session, and the head that the client names."""

    session_id: str
    head: str | None = None


def parse_speaker(session_id: str | None) -> Speaker | None:
    """What a request's session id says: `SESSION` or `SESSION/HEAD`; None where it is neither."""
    session, _, head = (session_id or "").partition("/")
    if not is_session_id(session) or (head and not is_session_id(head)):
        return None
    return Speaker(session, head or None)


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


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as listed. Tokens, hashes and title are those of the head that a freeze without a head would take."""

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
    """The requests, and the heads that their clients named."""
    expired: SessionView | None = None
    """As it was last listed before its tokens were let go."""


class SessionIndex:
    """The sessions of this engine since its start; see the module's text for which are kept."""

    def __init__(
        self,
        model: str,
        block_tokens: int,
        thawed_into: Callable[[bytes], str | None],
        request_title: RequestTitle | None = None,
        clock: Callable[[], Micros] = now_micros,
        continued: Continued | None = None,
    ) -> None:
        """`thawed_into` tells the session of a thaw's salt hash, or None for a salt that no thaw made; `continued` the
        anonymous session of a thawed window that tokens go on with."""
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
        speaker = self._named_speaker(request)
        if speaker is not None:
            session = self._open(speaker.session_id)
        elif request.session_id or not is_text_only(request):
            return  # what it says is no session id, or nothing of it could ever be frozen
        else:
            session = self._open_anonymous(request)
            speaker = Speaker(session.session_id)
        self._speaking[request.request_id] = speaker
        session.running[request.request_id] = (request, speaker.head)

    def request_finished(self, request: "Request") -> None:
        """Takes over the request's computed tokens as the new end of one of its session's heads."""
        speaker = self._speaking.pop(request.request_id, None)
        session = None if speaker is None else self._known(speaker.session_id)
        if speaker is None or session is None:
            return
        session.running.pop(request.request_id, None)
        before = session.heads.tokens
        self._touch(session)
        computed = self._chain(request)
        # Without one full block there is nothing that could be frozen.
        if computed.block_hashes:
            head = session.heads.extend(computed, speaker.head, session.last_active_at)
            if head.title is None and self._request_title is not None:
                self._request_title(computed.token_ids, lambda title: setattr(head, "title", title))
        if session.session_id in self._anonymous:
            self._anonymous_tokens += session.heads.tokens - before
            if not session.heads and not session.running:
                self._drop_anonymous(session.session_id)
            self._bound_anonymous()

    def session_id_of(self, request: "Request") -> str | None:
        """The session whose windows the request may load: the one it names, or the anonymous one it belongs to.

        A salt alone names none: it opens what was thawed for it and no more.
        """
        if request.session_id:
            told = parse_speaker(request.session_id)
            return None if told is None else told.session_id
        speaker = self._speaking.get(request.request_id)
        return None if request.cache_salt or speaker is None else speaker.session_id

    # --- what is asked for ---

    def snapshot(self, session_id: str, head: str | None) -> HeadSnapshot:
        """The head named, or the one last active (a running request counts as soon as it is ahead of what it extends).

        Heads that clients named, as subagents', are left out unless there are no others. `session_id` may also be the
        cache salt that the session is known by.
        Raises: CWM-2001 where there is no such session or head; CWM-3001 where no full block of it was computed yet.
        """
        session = self._known(session_id) or self._known(session_of_salt(session_id))
        if session is None or session.expired is not None:
            state = "knows no session" if session is None else "has let the tokens go of the expired session"
            raise CWMError(
                Code.SESSION_NOT_FOUND,
                f"this engine {state} {session_id!r}; session_list shows the ones it knows",
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
            session.session_id,
            chosen.name,
            self._model,
            chosen.chain.token_ids,
            chosen.chain.block_hashes,
            chosen.chain.cache_salt,
            chosen.chain.text_only,
            session.created_at,
            chosen.last_active_at,
        )

    def views(self) -> tuple[SessionView, ...]:
        """Last active first."""
        return tuple(_view(session) for session in sorted(self._all(), key=_last_active, reverse=True))

    def expire(self, is_cached: "Callable[[BlockHash], bool]") -> None:
        """Lets the tokens go of what the module's text calls expired."""
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

    # --- inside ---

    def _named_speaker(self, request: "Request") -> Speaker | None:
        """Who the request says that it is."""
        if (told := parse_speaker(request.session_id)) is not None:
            return told
        if request.cache_salt:
            return Speaker(self._thawed_into(salt_hash(request.cache_salt)) or session_of_salt(request.cache_salt))
        return None

    def _all(self) -> Iterator[_Session]:
        return chain(self._sessions.values(), self._anonymous.values())

    def _known(self, name: str) -> _Session | None:
        return self._sessions.get(name) or self._anonymous.get(name)

    def _open(self, name: str) -> _Session:
        if name not in self._sessions:
            # Who calls an anonymous session by its name has read it in a list: from now on the session is known by it.
            self._sessions[name] = self._drop_anonymous(name) or self._new(name)
            while len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return self._touch(self._sessions[name])

    def _open_anonymous(self, request: "Request") -> _Session:
        name = self._beginnings.find(request)
        if name is None:
            name = self._of_before(request) or self._new_name()
            self._beginnings.add(name, request)
            self._anonymous[name] = self._new(name)
            self._bound_anonymous()
        return self._touch(self._anonymous[name])

    def _of_before(self, request: "Request") -> str | None:
        """The session of before a restart that the request continues, if a window was thawed into it."""
        if self._continued is None:
            return None
        name = self._continued(request.all_token_ids, self._block_tokens)
        return None if name is None or self._known(name) else name

    def _new(self, name: str) -> _Session:
        now = self._clock()
        return _Session(name, now, now)

    def _new_name(self) -> str:
        """When it began, and enough beside that for another engine to make the same one hardly ever."""
        begun = datetime.fromtimestamp(self._clock() / 1e6, UTC)
        name = f"{ANONYMOUS}{begun:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        return self._new_name() if self._known(name) else name

    def _touch(self, session: _Session) -> _Session:
        session.last_active_at = self._clock()
        session.expired = None
        (self._anonymous if session.session_id in self._anonymous else self._sessions).move_to_end(session.session_id)
        return session

    def _bound_anonymous(self) -> None:
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
        """Computed tokens and the hashes of their full blocks.

        vLLM counts tokens of steps that are still under way as computed; they are left out.
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


def _view(session: _Session) -> SessionView:
    if session.expired is not None:
        return session.expired
    head = default_head(session.heads)
    return SessionView(
        session.session_id,
        session.created_at,
        session.last_active_at,
        len(head.chain.token_ids) if head else 0,
        tuple(each.name for each in session.heads),
        bool(session.running),
        head.chain.block_hashes if head else (),
        head.title if head else None,
    )
