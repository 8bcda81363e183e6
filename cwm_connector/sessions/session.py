"""One session: its heads, the requests that are being answered, and what is told about both.

Engine thread only. Nothing here blocks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros
from cwm_connector.sessions.bounds import EvictionClass, exceeds
from cwm_connector.sessions.extras.carried import Carried
from cwm_connector.sessions.head import Chain, Head, Turn, progress_of
from cwm_connector.sessions.heads import Heads, HeadTable
from cwm_connector.sessions.views import HeadKind, HeadReason, HeadSnapshot, SessionView

if TYPE_CHECKING:
    from array import array

SESSION_BYTES: Final = 3000
"""Python's own overhead for a session: its objects, its id, and its entries in the index's tables."""
MAX_OTHERS: Final = 20
"""Heads that a snapshot names beside its own."""


@dataclass(slots=True)
class Session:
    """One conversation as the engine sees it."""

    session_id: str
    is_anonymous: bool
    created_at: Micros
    last_active_at: Micros
    heads: Heads
    block_tokens: int
    running: dict[str, Turn] = field(default_factory=dict)
    """By request id, in the order of their arrival."""
    expired: SessionView | None = None
    """The session as it was listed when its tokens were dropped. None if it has not expired."""
    counted_bytes: int = 0
    blockless_tokens: int = 0
    """Computed tokens of the last request that ended without a full block. They can't be frozen yet."""

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the session takes in memory."""
        return SESSION_BYTES + self.heads.size_bytes

    def needs_trimming(self, limit_bytes: int) -> bool:
        """Return whether the session has more heads, or takes more memory, than one session may."""
        return exceeds(self.heads, limit_bytes)

    def table(self) -> HeadTable:
        """Return the heads as they would be if the running requests ended now."""
        if not self.running:
            return self.heads.table
        running = [progress_of(turn, self.block_tokens) for turn in self.running.values()]
        return self.heads.with_running(running, self.last_active_at)

    def eviction_class(self, protect_unfrozen: bool, chunk_tokens: int) -> EvictionClass:
        """Return how soon the session is dropped when memory is short."""
        if self.running:
            return EvictionClass.RUNNING
        if not self.heads:
            return EvictionClass.EMPTY
        if all(head.token_count < chunk_tokens for head in self.heads.table.by_name.values()):
            return EvictionClass.TINY
        if protect_unfrozen and self.unfrozen_heads(chunk_tokens):
            return EvictionClass.UNFROZEN
        return EvictionClass.ANONYMOUS if self.is_anonymous else EvictionClass.NAMED

    def unfrozen_heads(self, chunk_tokens: int, table: HeadTable | None = None) -> list[Head]:
        """Return the heads of at least a chunk with tokens that no window holds. `table` is that of `table()`.

        A side head counts if a chunk of it is not part of another head. See `Heads.own_tokens`.
        """
        heads = (table or self.table()).by_name.values()
        found = [head for head in heads if head.token_count >= chunk_tokens and head.unfrozen_tokens > 0]
        if not any(head.kind is HeadKind.SIDE for head in found):
            return found
        own = self.heads.own_tokens(heads)
        return [head for head in found if head.kind is not HeadKind.SIDE or own[head.name] >= chunk_tokens]

    def snapshot(self, model: str, head: str | None) -> HeadSnapshot:
        """Return the named head, or the default head if `head` is None. See `SessionIndex.snapshot`."""
        table = self.table()
        default = table.default()
        if default is None:
            raise CWMError(
                Code.STATE,
                f"session {self.session_id!r} has {self._tokens_without_a_block()} tokens; a window needs "
                f"{self.block_tokens}, which is a block of vLLM; freeze it after more turns",
                session_id=self.session_id,
            )
        chosen, reason = default if head is None else (table.by_name.get(head), HeadReason.ASKED)
        if chosen is None:
            raise CWMError(
                Code.SESSION_NOT_FOUND,
                f"session {self.session_id!r} has no head {head!r}; it has {', '.join(table.by_name)}",
                session_id=self.session_id,
                head=head,
            )
        others = [each for each in table.by_name.values() if each.name != chosen.name]
        others.sort(key=lambda each: each.activity, reverse=True)
        return HeadSnapshot(
            session_id=self.session_id,
            head=chosen.name,
            model=model,
            tokens=self.heads.tokens(chosen),
            block_hashes=self.heads.block_hashes(chosen),
            cache_salt=chosen.cache_salt,
            carried=chosen.carried,
            created_at=self.created_at,
            last_active_at=chosen.last_active_at,
            reason=reason,
            others=tuple(each.summary() for each in others[:MAX_OTHERS]),
            more_heads=max(0, len(others) - MAX_OTHERS),
            activity=chosen.activity,
        )

    def view(self) -> SessionView:
        """Return the session as it is listed."""
        return self.listed()[0]

    def listed(self) -> tuple[SessionView, Sequence[bytes]]:
        """Return the session as it is listed, and the hashes of its tokens.

        The hashes are valid until the next request ends.
        """
        if self.expired is not None:
            return self.expired, ()
        table = self.table()
        default = table.default()
        head, reason = default or (None, None)
        stored = None if head is None else self.heads.table.by_name.get(head.name, head)
        view = SessionView(
            session_id=self.session_id,
            created_at=self.created_at,
            last_active_at=self.last_active_at,
            token_count=self._tokens_without_a_block() if stored is None else stored.token_count,
            heads=tuple(table.by_name),
            running=bool(self.running),
            head="" if head is None else head.name,
            head_reason=reason,
            title=None if head is None else head.title,
            unfrozen_tokens=None if head is None else head.unfrozen_tokens,
            head_active_at=None if head is None else head.last_active_at,
            head_activity=0 if head is None else head.activity,
        )
        if stored is None:
            return view, ()
        return view, self.heads.block_hashes(stored) if stored.running else self.heads.live_hashes(stored)

    def _tokens_without_a_block(self) -> int:
        """Return the computed tokens of a session without a head."""
        running = (progress_of(turn, self.block_tokens).chain.token_count for turn in self.running.values())
        return max(self.blockless_tokens, *running, 0)

    def last_blocks(self) -> Iterator[bytes]:
        """Yield the hash of the last full block of each stored head."""
        return (head.last_block for head in self.heads.table.by_name.values())

    # --- frozen ---

    def mark_frozen(
        self, token_ids: "array[int]", block_hashes: Sequence[bytes], carried: Carried, names: Iterable[str]
    ) -> None:
        """Record that a window holds these tokens: for each named head, what it has in common with them."""
        chain = Chain(token_ids, block_hashes, len(token_ids), len(block_hashes), None, carried)
        table = self.table().by_name
        heads = [table[name] for name in names if name in table]
        common = self.heads.common_tokens(chain, heads)
        for head in heads:
            self._cover(head, common[head.name])

    def mark_covered(self, head: str, tokens: int) -> None:
        """Record that windows from before the engine's start hold the first `tokens` of the head."""
        shown = self.table().by_name.get(head)
        found = None if shown is None else self._cover(shown, tokens)
        if found is not None:
            found.coverage_known = True

    def _cover(self, shown: Head, tokens: int) -> "Head | Turn | None":
        """Raise what counts as frozen of the head. Return the stored head or the running request that holds it."""
        target: Head | Turn | None = shown.running.turn if shown.running else self.heads.table.by_name.get(shown.name)
        if target is not None:
            target.covered_tokens = max(target.covered_tokens, min(tokens, shown.token_count))
        return target
