"""The heads of one session, kept as the rules in `choice.py` say.

Engine thread only. Nothing here blocks.

The same rules are applied to a finished request, whose chain goes into the tree, and to a running one, whose chain
stays in the request. The second happens on a copy of the table of heads. The tree is not copied.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cwm_connector.core.types import Micros
from cwm_connector.sessions.block_tree import BlockTree, Match, Node
from cwm_connector.sessions.choice import Decision, Effect, becomes_main, decide, default_head, is_of_main_line
from cwm_connector.sessions.hash_run import ChainHashes, HashRun
from cwm_connector.sessions.head import Chain, Head, Progress, SharedTokens
from cwm_connector.sessions.titles import TITLED_TOKENS
from cwm_connector.sessions.token_run import TokenRun
from cwm_connector.sessions.views import HeadKind, HeadReason

MAX_HEADS: Final = 256
"""Heads of one session. A request is compared with each of them."""


RequestTitle = Callable[[TokenRun, Callable[[str], None]], None]
"""Takes the tokens and a function to call with the title. See `Titler.request_title`."""


@dataclass(slots=True)
class HeadTable:
    """The heads of a session by name, and which one is the conversation."""

    by_name: dict[str, Head] = field(default_factory=dict)
    main_name: str | None = None
    opened: int = 0
    """How many heads were named by us."""

    @property
    def main(self) -> Head | None:
        """Return the main head."""
        return None if self.main_name is None else self.by_name.get(self.main_name)

    def default(self) -> tuple[Head, HeadReason] | None:
        """Return the head that a freeze takes when none is asked for, and why."""
        return default_head(self.by_name, self.main)

    def copy(self) -> "HeadTable":
        """Return a copy. Heads are replaced in it and not changed."""
        return HeadTable(dict(self.by_name), self.main_name, self.opened)

    def next_name(self) -> str:
        """Return a name for a head that no client has named."""
        self.opened += 1
        while f"h{self.opened}" in self.by_name:
            self.opened += 1
        return f"h{self.opened}"


class Heads:
    """The heads of one session."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._tree = BlockTree(block_tokens)
        self._heads_bytes = 0
        self.sides = 0
        """How many of them are side heads."""
        self.table = HeadTable()

    def __len__(self) -> int:
        return len(self.table.by_name)

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the heads take in memory."""
        return self._tree.size_bytes + self._heads_bytes

    # --- requests ---

    def finish(self, progress: Progress, now: Micros) -> Head | None:
        """Apply a finished request. Return the head that it moved, opened or repeated, if there is one."""
        match = self._tree.match(progress.chain.block_hashes, progress.chain.blocks)
        before = dict(self.table.by_name)
        head = self._apply(self.table, progress, now, match)
        table = self.table.by_name
        gone = [each for name, each in before.items() if table.get(name) is not each]
        new = [each for name, each in table.items() if before.get(name) is not each]
        left = Counter(each.node for each in gone) - Counter(each.node for each in new if each.running is None)
        if head is not None and head.running is not None:
            self._store(head, progress.chain, match)
        for node in left.elements():
            self._tree.detach(_stored(node))
        self.sides += sum(each.is_side for each in new) - sum(each.is_side for each in gone)
        self._heads_bytes += sum(each.size_bytes for each in new) - sum(each.size_bytes for each in gone)
        return head

    def with_running(self, running: Iterable[Progress], now: Micros) -> HeadTable:
        """Return the heads as they would be if the running requests ended now."""
        table = self.table.copy()
        for progress in running:
            match = self._tree.match(progress.chain.block_hashes, progress.chain.blocks)
            self._apply(table, progress, now, match)
        return table

    def drop(self, name: str) -> None:
        """Remove a head, and the blocks that no other head uses."""
        head = self.table.by_name.pop(name)
        self._heads_bytes -= head.size_bytes
        self.sides -= head.is_side
        self._tree.detach(_stored(head.node))

    def ask_for_title(self, request_title: RequestTitle, head: Head) -> None:
        """Request the head's title, which it gets later unless it is dropped before."""

        def set_title(title: str) -> None:
            if (titled := self.table.by_name.get(head.name)) is not None:
                titled.title = title

        request_title(self.tokens(head, TITLED_TOKENS), set_title)

    # --- reading ---

    def tokens(self, head: Head, limit: int | None = None) -> TokenRun:
        """Return the head's tokens for another thread. Those that lie in a request's list are packed there.

        With a `limit` only the first tokens of a stored head are returned.
        """
        if head.running is None:
            if limit is not None and limit < head.token_count - len(head.tail):
                return TokenRun.of_runs(self._tree.runs(_stored(head.node), limit))
            stored = self._tree.runs(_stored(head.node), head.token_count)
            return TokenRun.of_runs([*stored, TokenRun(head.tail[:])])
        chain = head.running.chain
        match = self._tree.match(chain.block_hashes, chain.blocks)
        known = match.blocks * self._block_tokens
        rest = TokenRun.of_list(chain.token_ids, known, chain.token_count)
        return TokenRun.of_runs([*self._tree.runs(match.node, known), rest])

    @property
    def is_packed(self) -> bool:
        """Return whether nothing lies in a request's lists any more."""
        return self._tree.is_packed

    def pack(self, limit: int) -> None:
        """Pack at most `limit` tokens, and their hashes, that lie in the lists of finished requests."""
        self._tree.pack(limit)

    def block_hashes(self, head: Head) -> Sequence[bytes]:
        """Return the hashes of the head's blocks, which do not change any more."""
        if head.running is None:
            return ChainHashes([node.hashes.copy() for node in _stored(head.node).path()])
        chain = head.running.chain
        return HashRun.of_list(chain.block_hashes, 0, chain.blocks)

    def live_hashes(self, head: Head) -> ChainHashes:
        """Return the hashes of a stored head without a copy. They are valid until the next request ends."""
        return ChainHashes([node.hashes for node in _stored(head.node).path()])

    def common_tokens(self, chain: Chain, heads: Iterable[Head]) -> dict[str, int]:
        """Return how many tokens the chain has in common with each of the heads."""
        shared = SharedTokens(self._tree, chain, self._tree.match(chain.block_hashes, chain.blocks))
        return {head.name: shared(head) for head in heads}

    def own_tokens(self, heads: Iterable[Head]) -> dict[str, int]:
        """Return for each head how many of its tokens no weightier head has.

        A side head weighs less than any other. Of two alike the longer one weighs more.
        """
        seen = {self._tree.root}
        own = {}
        for head in sorted(heads, key=lambda each: (each.kind is HeadKind.SIDE, -each.token_count)):
            node = head.node
            path = []
            while node is not None and node not in seen:
                path.append(node)
                node = node.parent
            shared = 0 if node is None else node.end
            own[head.name] = head.token_count - shared * self._block_tokens
            seen.update(path)
        return own

    # --- inside ---

    def _apply(self, table: HeadTable, progress: Progress, now: Micros, match: Match) -> Head | None:
        """Change the table as the rules say. A head that is moved or opened gets the request as its chain."""
        heads = list(table.by_name.values())
        shared = SharedTokens(self._tree, progress.chain, match)
        main = table.main
        decision = decide(heads, main, progress, shared)
        if decision.effect is Effect.NONE:
            return None
        if decision.effect is Effect.REPEAT and not progress.is_whole:
            return decision.head
        if decision.effect is Effect.OPEN:
            head = self._opened(table, decision, progress, shared.most(heads))
        else:
            assert decision.head is not None
            head = copy.copy(decision.head)
        if decision.effect is not Effect.REPEAT:
            _move(head, progress, 0 if decision.head is None else shared(decision.head))
            _absorb(table, head, heads, shared)
        head.activity, head.last_active_at = progress.turn.activity, now
        if progress.is_whole:
            _note_turn(head, decision, progress)
        # The last active head comes last.
        table.by_name.pop(head.name, None)
        table.by_name[head.name] = head
        if becomes_main(heads, main, head, progress, shared, now):
            _, with_main_line = shared.most([each for each in heads if each.is_main_line])
            _make_main(table, head, progress, with_main_line)
        return head

    def _opened(
        self, table: HeadTable, decision: Decision, progress: Progress, closest: tuple[Head | None, int]
    ) -> Head:
        name = progress.turn.name if decision.kind is HeadKind.SUBAGENT else None
        if name is not None and name in table.by_name:
            _rename(table, name)
        parent, tokens = closest
        return Head(
            name=name or table.next_name(),
            kind=decision.kind,
            token_count=0,
            cache_salt=progress.chain.cache_salt,
            carried=progress.chain.carried,
            prompt_tokens=0,
            is_partial=True,
            activity=0,
            last_active_at=Micros(0),
            covered_tokens=0 if parent is None else min(parent.covered_tokens, tokens),
            coverage_known=parent is not None and parent.coverage_known and tokens > 0,
        )

    def _store(self, head: Head, chain: Chain, match: Match) -> None:
        """Put the chain into the tree as the head's."""
        size, end = self._block_tokens, chain.blocks
        hashes = HashRun.of_list(chain.block_hashes, match.blocks, end)
        tokens = TokenRun.of_list(chain.token_ids, match.blocks * size, end * size)
        head.node = self._tree.attach(match, hashes, tokens)
        head.tail = chain.ids(end * size)
        head.running = None


def _stored(node: Node | None) -> Node:
    """Return the node of a head that is in the tree."""
    assert node is not None
    return node


def _move(head: Head, progress: Progress, shared: int) -> None:
    """Make the request's chain the head's."""
    chain, turn = progress.chain, progress.turn
    if head.token_count:
        head.covered_tokens = min(head.covered_tokens, shared)
    head.covered_tokens = max(head.covered_tokens, min(turn.covered_tokens, chain.token_count))
    head.coverage_known = head.coverage_known or turn.coverage_known
    head.running = progress
    head.token_count = chain.token_count
    head.cache_salt = chain.cache_salt
    head.carried = chain.carried
    if progress.is_whole:
        head.is_partial = False
        head.prompt_tokens = progress.prompt_tokens
    elif head.is_partial:
        head.prompt_tokens = chain.token_count


def _note_turn(head: Head, decision: Decision, progress: Progress) -> None:
    """Record a request whose prompt was computed whole."""
    hints = progress.turn.hints
    head.turns += decision.continued
    head.streams = progress.streams
    head.has_tools = head.has_tools if hints.has_tools is None else hints.has_tools
    head.opening = hints.opening or head.opening


def _absorb(table: HeadTable, head: Head, heads: Iterable[Head], shared: SharedTokens) -> None:
    """Remove side heads and attempts that were cut off, if the head has all of them now."""
    if head.kind is HeadKind.SUBAGENT:
        return
    for other in heads:
        is_less = other.kind is HeadKind.SIDE or (other.is_partial and head.kind is HeadKind.CONVERSATION)
        if is_less and other.name != head.name and shared(other) == other.token_count:
            table.by_name.pop(other.name, None)


def _make_main(table: HeadTable, head: Head, progress: Progress, shared: int) -> None:
    main = table.main
    if main is None or not is_of_main_line(main, progress, shared):
        for other in [each for each in table.by_name.values() if each.is_main_line]:
            table.by_name[other.name] = other if other is head else _off_main_line(other)
    head.is_main_line = True
    table.main_name = head.name


def _off_main_line(head: Head) -> Head:
    other = copy.copy(head)
    other.is_main_line = False
    return other


def _rename(table: HeadTable, name: str) -> None:
    """Give the head another name, because a client calls another head so."""
    head = copy.copy(table.by_name[name])
    head.name = table.next_name()
    table.by_name = {(head.name if each == name else each): old for each, old in table.by_name.items()}
    table.by_name[head.name] = head
    if table.main_name == name:
        table.main_name = head.name
