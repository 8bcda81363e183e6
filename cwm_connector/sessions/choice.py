"""The rules: which head a request belongs to, and which head is the conversation that a freeze takes.

Pure functions over the heads of one session. Engine thread only. Nothing here blocks.

A request whose computed tokens are all in a head changes no chain. One that holds the whole last prompt of a head
continues it, and the head moves to the request's chain. Its old answer is dropped where the client has rewritten it.
Every other request opens a head: a branch, another answer to the same prompt, or an unrelated chain. A request that was
cut off in its prompt moves a head only if it holds all of it.

The main head changes only when a request's whole prompt was computed. The request must continue it or branch from it,
begin with the same tools and system text, go on with a window that was thawed into the session under a new salt, or be
a conversation of its own: the session's first one, a longer one than a single exchange before it, or one that was
itself continued. Side requests and subagents never become the main head.
"""

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cwm_connector.core.types import Micros
from cwm_connector.sessions.head import Head, Progress, SharedTokens, is_hinted_side
from cwm_connector.sessions.unnamed import compared_tokens
from cwm_connector.sessions.views import HeadKind, HeadReason

SUBSTANTIAL_TOKENS: Final = 256
"""A request that shares so many tokens with the main line belongs to it, or one that shares a quarter of its prompt."""
SILENT_AFTER: Final = 600 * 1_000_000
"""Microseconds. A main head that was silent for so long gives way to another conversation that goes on."""


class Effect(enum.Enum):
    """What a request does to a session's heads."""

    NONE = enum.auto()
    """It was cut off, or it holds no full block, and no head has to change."""
    REPEAT = enum.auto()
    """A head has all of it already."""
    MOVE = enum.auto()
    """A head now ends where the request does."""
    OPEN = enum.auto()
    """It is a new head."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The effect of one request."""

    effect: Effect
    kind: HeadKind = HeadKind.CONVERSATION
    head: Head | None = None
    """The head that is repeated or moved."""
    continued: bool = False
    """The request is a further turn of the head, not a repetition or another attempt."""


NOTHING: Final = Decision(Effect.NONE)


def decide(heads: Collection[Head], main: Head | None, progress: Progress, shared_with: SharedTokens) -> Decision:
    """Return what the request does to the heads."""
    kind = _kind(progress, main, shared_with)
    if kind is HeadKind.SUBAGENT:
        decision = _decide_named(heads, progress, shared_with)
    elif kind is HeadKind.SIDE:
        decision = _decide_side(heads, progress, shared_with)
    else:
        decision = _decide_conversation(heads, main, progress, shared_with)
    return NOTHING if decision.effect in (Effect.MOVE, Effect.OPEN) and not progress.chain.blocks else decision


def becomes_main(
    heads: Collection[Head], main: Head | None, head: Head, progress: Progress, shared_with: SharedTokens, now: Micros
) -> bool:
    """Return whether `head`, to which the request belongs now, becomes the main head.

    `heads` are the heads before the request, and `shared_with` is about them.
    """
    if head.kind is not HeadKind.CONVERSATION or not progress.is_whole:
        return False
    if main is None:
        others = (each for each in heads if each.name != head.name and each.kind is HeadKind.CONVERSATION)
        return all(head.token_count >= each.token_count for each in others)
    _, shared = shared_with.most([each for each in heads if each.is_main_line])
    resumes = progress.turn.resumes
    looks_like_side = not resumes and main.streams and not progress.streams and 4 * shared < progress.prompt_tokens
    if not looks_like_side and is_of_main_line(main, progress, shared):
        return True
    if head.turns:
        return now - main.last_active_at > SILENT_AFTER or 2 * head.token_count >= main.token_count
    gains_tools = progress.turn.hints.has_tools is True and main.has_tools is False
    return not looks_like_side and not main.turns and (gains_tools or progress.prompt_tokens > main.prompt_tokens)


def is_of_main_line(main: Head, progress: Progress, shared: int) -> bool:
    """Return whether the request is a later state of the main conversation, with which it shares `shared` tokens."""
    opening = progress.turn.hints.opening
    return (
        progress.turn.resumes
        or 4 * shared >= progress.prompt_tokens
        or shared >= SUBSTANTIAL_TOKENS
        or (opening is not None and opening == main.opening)
    )


def default_head(heads: Mapping[str, Head], main: Head | None) -> tuple[Head, HeadReason] | None:
    """Return the head that a freeze takes when none is asked for, and why. None if there is no head."""
    if len(heads) == 1:
        return next(iter(heads.values())), HeadReason.ONLY
    if main is not None:
        return main, HeadReason.MAIN
    by_kind = {kind: [head for head in heads.values() if head.kind is kind] for kind in HeadKind}
    if unfinished := by_kind[HeadKind.CONVERSATION]:
        return max(unfinished, key=lambda head: (head.token_count, head.activity)), HeadReason.UNFINISHED
    for kind, reason in ((HeadKind.SUBAGENT, HeadReason.SUBAGENT), (HeadKind.SIDE, HeadReason.SIDE)):
        if found := by_kind[kind]:
            return max(found, key=lambda head: head.activity), reason
    return None


def _kind(progress: Progress, main: Head | None, shared_with: SharedTokens) -> HeadKind:
    hints = progress.turn.hints
    if is_hinted_side(hints) or progress.is_structured:
        return HeadKind.SIDE
    if progress.turn.name is not None:
        return HeadKind.SUBAGENT
    lost_tools = main is not None and main.has_tools is True and hints.has_tools is False
    if main is not None and lost_tools and (hints.opening is None or hints.opening != main.opening):
        # Tools that the template does not show can be left out of a turn. It then still holds the whole last prompt.
        return HeadKind.CONVERSATION if _holds_prompt(main, shared_with(main)) else HeadKind.SIDE
    return HeadKind.CONVERSATION


def _decide_named(heads: Collection[Head], progress: Progress, shared_with: SharedTokens) -> Decision:
    kind = HeadKind.SUBAGENT
    own = next((head for head in heads if head.name == progress.turn.name and head.kind is kind), None)
    if own is None:
        return Decision(Effect.OPEN, kind)
    shared = shared_with(own)
    if shared == progress.chain.token_count:
        return Decision(Effect.REPEAT, kind, own)
    if progress.is_whole or shared == own.token_count:
        return Decision(Effect.MOVE, kind, own, continued=progress.is_whole and _is_next_turn(own, progress, shared))
    return NOTHING


def _decide_side(heads: Collection[Head], progress: Progress, shared_with: SharedTokens) -> Decision:
    kind = HeadKind.SIDE
    others = [head for head in heads if head.kind is not HeadKind.SUBAGENT]
    shared = {head: shared_with(head) for head in _near(others, progress, shared_with)}
    if repeated := [head for head, tokens in shared.items() if tokens == progress.chain.token_count]:
        sides = [head for head in repeated if head.kind is kind]
        return Decision(Effect.REPEAT, kind, sides[0]) if sides else NOTHING
    fitting = [
        head
        for head, tokens in shared.items()
        if head.kind is kind and (_holds_prompt(head, tokens) if progress.is_whole else tokens == head.token_count)
    ]
    if fitting:
        head = max(fitting, key=shared.__getitem__)
        return Decision(Effect.MOVE, kind, head, continued=_is_next_turn(head, progress, shared[head]))
    return Decision(Effect.OPEN, kind) if progress.is_whole else NOTHING


def _decide_conversation(
    heads: Collection[Head], main: Head | None, progress: Progress, shared_with: SharedTokens
) -> Decision:
    kind = HeadKind.CONVERSATION
    others = [head for head in heads if head.kind is kind]
    shared = {head: shared_with(head) for head in _near(others, progress, shared_with)}
    if repeated := [head for head, tokens in shared.items() if tokens == progress.chain.token_count]:
        return Decision(Effect.REPEAT, kind, max(repeated, key=lambda head: (head is main, head.activity)))
    fitting = [
        head
        for head, tokens in shared.items()
        if tokens == head.token_count or (progress.is_whole and _is_next_turn(head, progress, tokens))
    ]
    if not fitting:
        return Decision(Effect.OPEN, kind)
    best = max(fitting, key=lambda head: (not head.is_partial, shared[head], head is main, head.activity))
    return Decision(
        Effect.MOVE, kind, best, continued=progress.is_whole and _is_next_turn(best, progress, shared[best])
    )


def _near(heads: Sequence[Head], progress: Progress, shared_with: SharedTokens) -> list[Head]:
    """Return the heads that may have all of the request, or of which the request may have all, or the last prompt."""
    most = progress.chain.token_count
    return [
        head
        for head, bound in zip(heads, shared_with.at_most(heads), strict=True)
        if bound >= most or bound >= head.token_count or bound >= compared_tokens(head.prompt_tokens)
    ]


def _holds_prompt(head: Head, shared: int) -> bool:
    return shared >= compared_tokens(head.prompt_tokens)


def _is_next_turn(head: Head, progress: Progress, shared: int) -> bool:
    """Return whether the request's prompt continues the head's last prompt. Another answer to it does not."""
    return progress.turn.prompt_tokens > head.prompt_tokens and _holds_prompt(head, shared)
