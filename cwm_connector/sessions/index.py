"""Keep the sessions of an engine, and the heads of each of them.

Engine thread only. Nothing here blocks. A `HeadSnapshot` is immutable and may be handed to any thread.

A session is identified by the session id of its requests. Without one it is identified by its cache salt, which is only
ever shown as a hash. A request with neither belongs to the anonymous session whose conversation it continues, or it
opens a new one (see `unnamed.py`). A request that has a session id, valid or not, or a salt is never anonymous.

A session can have several chains: subagents, title generation, another answer, edited history. Each of them is a head.
The client can name the head in the session id, as `SESSION/HEAD`. The middleware does this for subagents. `choice.py`
says which head a request belongs to and which one is the conversation.

The index takes a bounded number of bytes. `bounds.py` says what is dropped first. A session without an id that has no
full block is not kept when its last request has ended.

A session expires when it was unused for `EXPIRES_AFTER` and the prefix cache has lost the end of each of its heads. It
stays in the list, but its tokens are dropped and it can't be frozen. A new request revives it. Each request and the
control thread's maintenance check a few sessions, so that expiry does not depend on somebody who lists them.
"""

import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.speaker import NO_HINTS, Speaker, parse_speaker
from cwm_connector.core.types import Micros, now_micros, salt_hash
from cwm_connector.sessions.bounds import (
    MAX_EMPTY_SESSIONS,
    MAX_INDEX_BYTES,
    MAX_SESSIONS,
    SESSION_SHARE,
    EvictionClass,
    EvictionQueue,
    trim_heads,
)
from cwm_connector.sessions.choice import SUBSTANTIAL_TOKENS
from cwm_connector.sessions.extras.carried import PLAIN_REQUEST, Carried, RequestExtras
from cwm_connector.sessions.head import Head, Turn, progress_of
from cwm_connector.sessions.heads import Heads, RequestTitle
from cwm_connector.sessions.session import Session
from cwm_connector.sessions.token_run import PACKED_IN_A_STEP
from cwm_connector.sessions.unnamed import SALTED, Beginnings, Continued, new_name, session_of_salt
from cwm_connector.sessions.views import HeadSnapshot, SessionView

if TYPE_CHECKING:
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

EXPIRES_AFTER: Final = 24 * 3600 * 1_000_000
"""Microseconds."""
MARKED_HEADS: Final = 16
"""Heads that are compared with a new window at a time."""
EXPIRY_SLICE: Final = 64
"""Sessions that one call of `expire` looks at."""


Resumes = Callable[[str, bytes, Sequence[int], int], bool]
"""Takes a session, a salt's hash, and a prompt of which to compare so many tokens. See `ThawBindings.resumes`."""


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
        max_bytes: int = MAX_INDEX_BYTES,
        chunk_tokens: int = 256,
        resumes: Resumes | None = None,
        extras: RequestExtras | None = None,
    ) -> None:
        """Start without sessions.

        `thawed_into` returns the session for which a thaw made the salt with this hash, or None if no thaw made it.
        `continued` returns the anonymous session of before a restart that the request continues.
        """
        self._model = model
        self._block_tokens = block_tokens
        self._thawed_into = thawed_into
        self._request_title = request_title
        self._clock = clock
        self._continued = continued
        self._resumes, self._extras = resumes, extras or RequestExtras(block_tokens)
        self._max_bytes = max_bytes
        self._chunk_tokens = chunk_tokens
        self._protects_unfrozen = False
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        """The last active one comes last."""
        self._eviction = EvictionQueue(self._eviction_class)
        self._size_bytes = 0
        self._beginnings = Beginnings(block_tokens)
        self._speaking: dict[str, str] = {}
        """The session of each request that is being answered."""
        self._activity = 0
        self._to_expire: list[str] = []
        self._unpacked: dict[str, None] = {}
        """Sessions with tokens that still lie in the lists of finished requests."""

    @property
    def size_bytes(self) -> int:
        """Return the bytes that all sessions take in memory."""
        return self._size_bytes

    @property
    def is_answering(self) -> bool:
        """Return whether a request of any session is being answered. Any thread may ask."""
        return bool(self._speaking)

    # --- requests ---

    def request_added(self, request: "Request") -> None:
        """Assign the request to its session, which is opened if it is new."""
        named = parse_speaker(request.session_id)
        if (session_id := self._session_named(request, named)) is not None:
            session = self._open(session_id)
        elif (request.session_id and named is None) or self._extras.of(request).fault is not None:
            return  # its session id is not valid, or its KV could never be frozen
        else:
            session = self._open_anonymous(request)
        self._speaking[request.request_id] = session.session_id
        session.running[request.request_id] = Turn(
            request=request,
            name=None if named is None else named.head,
            hints=NO_HINTS if named is None else named.hints,
            prompt_tokens=request.num_tokens,
            activity=self._next_activity(),
            carried=self._extras.of(request),
            resumes=self._resumes_thaw(session, request, request.num_tokens),
        )
        self._bring_within_bounds(session)

    def request_finished(self, request: "Request") -> None:
        """Apply the request's computed tokens to its session's heads."""
        session = self._sessions.get(self._speaking.pop(request.request_id, ""))
        if session is None or (turn := session.running.pop(request.request_id, None)) is None:
            return
        self._touch(session)
        turn.activity = self._next_activity()
        turn.resumes = turn.resumes or self._resumes_thaw(session, request, turn.prompt_tokens)
        progress = progress_of(turn, self._block_tokens)
        head = session.heads.finish(progress, session.last_active_at)
        session.blockless_tokens = 0 if progress.chain.blocks else progress.chain.token_count
        if head is not None and head.title is None and self._request_title is not None:
            session.heads.ask_for_title(self._request_title, head)
        self._bring_within_bounds(session)

    def session_id_of(self, request: "Request") -> str | None:
        """Return the session whose windows the request may load: the one it names, or its anonymous session.

        Return None for a request with a salt alone. It may load only what was thawed for that salt.
        """
        if request.session_id:
            named = parse_speaker(request.session_id)
            if named is None or named.session_id is not None:
                return None if named is None else named.session_id
        return None if request.cache_salt else self._speaking.get(request.request_id)

    @property
    def is_packed(self) -> bool:
        """Return whether no token lies in the list of a finished request."""
        return not self._unpacked

    def pack(self) -> None:
        """Pack some tokens that lie in the lists of finished requests. See `token_run`."""
        name = next(iter(self._unpacked), "")
        self._unpacked.pop(name, None)  # so that tokens that can't be packed stop one step only
        if (session := self._sessions.get(name)) is not None:
            session.heads.pack(PACKED_IN_A_STEP)
            self._count(session)

    # --- queries ---

    def snapshot(self, session_id: str, head: str | None) -> HeadSnapshot:
        """Return the named head, or the default head if `head` is None.

        A running request counts as soon as it is ahead of the head that it extends. `session_id` may also be the cache
        salt that identifies the session.
        Raises `Code.SESSION_NOT_FOUND` if there is no such session or head, `Code.STATE` if no full block has been
        computed yet.
        """
        session = self._known(session_id)
        if session is None or session.expired is not None:
            state = "has no session" if session is None else "has dropped the tokens of the expired session"
            raise CWMError(
                Code.SESSION_NOT_FOUND,
                f"this engine {state} {session_id!r}; session_list shows the sessions that it has",
                session_id=session_id,
            )
        return session.snapshot(self._model, head)

    def recent(self) -> Iterator[Session]:
        """Yield the sessions, the last active one first. The index may change meanwhile.

        Sessions that are opened meanwhile are left out, and so are those that are dropped.
        """
        for name in reversed(list(self._sessions)):
            if (session := self._sessions.get(name)) is not None:
                yield session

    def views(self) -> tuple[SessionView, ...]:
        """Return all sessions, the last active one first."""
        return tuple(view for session in self.recent() for view, _ in self.listed(session))

    def listed(self, session: Session) -> list[tuple[SessionView, Sequence[bytes]]]:
        """Return a session as it is listed, and the hashes of its tokens, which are valid until the next request ends.

        A session that can't be shown is logged and left out.
        """
        try:
            return [session.listed()]
        except Exception:
            logger.exception("session %s can't be listed", session.session_id)
            return []

    def unfrozen(self, session: Session) -> list[tuple[Head, bool]]:
        """Return the heads of at least a chunk that hold unfrozen tokens, each with whether it is the default head.

        A side head counts if a chunk of it is not part of another head. A session that fails is logged and left out.
        """
        try:
            table = session.table()
            found = session.unfrozen_heads(self._chunk_tokens, table)
            default = table.default() if found else None
        except Exception:
            logger.exception("session %s can't be searched for unfrozen tokens", session.session_id)
            return []
        return [(head, default is not None and default[0].name == head.name) for head in found]

    # --- frozen ---

    def mark_frozen(
        self, session_id: str, token_ids: "array[int]", hashes: Sequence[bytes], carried: Carried = PLAIN_REQUEST
    ) -> Iterator[Sequence[str]]:
        """Record that a window holds these tokens: in every head, what it has in common with them.

        Yield a few heads at a time, by name, once they are compared.
        """
        names = [] if (session := self._known(session_id)) is None else list(session.table().by_name)
        while names and (session := self._known(session_id)) is not None:
            now, names = names[:MARKED_HEADS], names[MARKED_HEADS:]
            session.mark_frozen(token_ids, hashes, carried, now)
            self._eviction.changed(session_id)
            yield now

    def mark_covered(self, session_id: str, head: str, tokens: int) -> None:
        """Record that windows from before the engine's start hold the first `tokens` of a head."""
        if (session := self._known(session_id)) is not None:
            session.mark_covered(head, tokens)
            self._eviction.changed(session.session_id)

    def unfrozen_tokens(self, session_id: str, head: str) -> int:
        """Return how many tokens of a head no window holds. 0 for a head that is not there."""
        session = self._known(session_id)
        found = None if session is None else session.table().by_name.get(head)
        return 0 if found is None else found.unfrozen_tokens

    def protect_unfrozen(self, enabled: bool) -> None:
        """Set whether sessions and heads with unfrozen tokens are dropped last, as they are while auto-freeze is on."""
        self._protects_unfrozen = enabled

    # --- expiry ---

    def expire(self, is_cached: Callable[[bytes], bool], limit: int = EXPIRY_SLICE) -> None:
        """Drop the tokens of the sessions that have expired, among the next `limit` sessions."""
        if not self._to_expire:
            self._to_expire = list(self._sessions)
        latest = self._clock() - EXPIRES_AFTER
        for _ in range(min(limit, len(self._to_expire))):
            session = self._sessions.get(self._to_expire.pop())
            if session is None or session.expired is not None or session.running or session.last_active_at > latest:
                continue
            if not any(is_cached(block) for block in session.last_blocks()):
                session.expired = replace(session.view(), expired=True)
                session.heads = Heads(self._block_tokens)
                self._count(session)
                self._eviction.changed(session.session_id)

    # --- internal ---

    def _session_named(self, request: "Request", named: Speaker | None) -> str | None:
        """Return the session that the request names by its session id or its salt."""
        if named is not None and named.session_id is not None:
            return named.session_id
        if request.cache_salt:
            return self._thawed_into(salt_hash(request.cache_salt)) or session_of_salt(request.cache_salt)
        return None

    def _resumes_thaw(self, session: Session, request: "Request", prompt_tokens: int) -> bool:
        """Return whether the request goes on with a window that was thawed into the session under the request's salt.

        Compares what makes a request part of the main line: 256 tokens, or a quarter of a short prompt.
        """
        if self._resumes is None or not request.cache_salt:
            return False
        compared = min(SUBSTANTIAL_TOKENS, -(-prompt_tokens // 4))
        return self._resumes(session.session_id, salt_hash(request.cache_salt), request.all_token_ids, compared)

    def _next_activity(self) -> int:
        self._activity += 1
        return self._activity

    def _known(self, name: str) -> Session | None:
        return self._sessions.get(name) or self._sessions.get(session_of_salt(name))

    def _open(self, name: str) -> Session:
        session = self._sessions.get(name)
        if session is None:
            session = self._new(name, is_anonymous=False)
        elif session.is_anonymous:
            # The name of an anonymous session can be read in a list. A request that uses it makes it a named session.
            session.is_anonymous = False
            self._beginnings.remove(name)
        return self._touch(session)

    def _open_anonymous(self, request: "Request") -> Session:
        name = self._beginnings.find(request)
        if name is not None:
            return self._touch(self._sessions[name])
        name = self._session_before_restart(request) or new_name(self._clock(), self._sessions)
        session = self._new(name, is_anonymous=True)
        self._beginnings.add(name, request)
        return self._touch(session)

    def _session_before_restart(self, request: "Request") -> str | None:
        """Return the session from before a restart that the request continues, if one of its windows shows it."""
        if self._continued is None:
            return None
        name = self._continued(request.request_id)
        return None if name is None or name in self._sessions else name

    def _new(self, name: str, *, is_anonymous: bool) -> Session:
        now, size = self._clock(), self._block_tokens
        self._sessions[name] = session = Session(name, is_anonymous, now, now, Heads(size), size)
        return session

    def _touch(self, session: Session) -> Session:
        session.last_active_at = self._clock()
        session.expired = None
        self._sessions.move_to_end(session.session_id)
        return session

    # --- memory ---

    def _eviction_class(self, session_id: str) -> EvictionClass:
        return self._sessions[session_id].eviction_class(self._protects_unfrozen, self._chunk_tokens)

    def _count(self, session: Session) -> None:
        size = session.size_bytes + self._beginnings.size_bytes(session.session_id)
        self._size_bytes += size - session.counted_bytes
        session.counted_bytes = size
        if not session.heads.is_packed:
            self._unpacked[session.session_id] = None

    def _bring_within_bounds(self, session: Session) -> None:
        """Count the session again, and drop what exceeds the bounds."""
        nameless = session.is_anonymous or session.session_id.startswith(SALTED)
        if nameless and not session.heads and not session.running:
            self._drop(session.session_id)
            return
        limit = self._max_bytes // SESSION_SHARE
        if session.needs_trimming(limit):
            running = [head.name for head in session.table().by_name.values() if head.running is not None]
            unfrozen = session.unfrozen_heads(self._chunk_tokens) if self._protects_unfrozen else []
            trim_heads(session.session_id, session.heads, limit, running, [head.name for head in unfrozen])
        self._count(session)
        self._eviction.used(session.session_id)
        while len(self._sessions) > 1 and self._is_over():
            found = self._eviction.next()
            if found is None:
                return
            session_id, why = found
            if why >= EvictionClass.UNFROZEN:
                fault = "was being answered" if why is EvictionClass.RUNNING else "has tokens that no window holds"
                logger.warning(
                    "session %s was dropped to keep the index within its memory, although it %s", session_id, fault
                )
            self._drop(session_id)

    def _is_over(self) -> bool:
        return (
            self._size_bytes > self._max_bytes
            or len(self._sessions) > MAX_SESSIONS
            or self._eviction.count(EvictionClass.EMPTY) > MAX_EMPTY_SESSIONS
        )

    def _drop(self, session_id: str) -> None:
        session = self._sessions.pop(session_id)
        self._eviction.remove(session_id)
        self._beginnings.remove(session_id)
        self._size_bytes -= session.counted_bytes
