"""What the clients say: recitations that share their beginnings and branch, all known before the first request.

root ── turn ── turn        a root is a part of a log over and over, which a small model goes on reciting
   └── turn                 a turn repeats all that was said, and the answer of the engine without windows
long                        as long as half the KV cache: computed in several steps, and preempted
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.support.talk import SCRIPT
from tests.support.texts import Tokenizer, prompt_of

_CUE: Final = (24, 200)
"""Tokens that a turn adds, from and to."""
_ROOT: Final = (330, 760)
_LONG: Final = (1250, 1500)
_ANSWER: Final = (12, 28)


@dataclass(slots=True, eq=False)
class Turn:
    """One prompt. `answer` is filled in before anybody else says anything."""

    name: str
    script: Sequence[int]
    parent: "Turn | None"
    added: int
    max_tokens: int
    answer: tuple[int, ...] = ()
    children: "list[Turn]" = field(default_factory=list)

    @property
    def prompt(self) -> list[int]:
        """All that is said before the answer. The parent must have been answered."""
        said = [] if self.parent is None else [*self.parent.prompt, *self.parent.answer]
        return said + [self.script[(len(said) + number) % len(self.script)] for number in range(self.added)]

    def conversation(self) -> "list[Turn]":
        """Return all turns from the root of this one on, each after its parent."""
        root = self
        while root.parent is not None:
            root = root.parent
        found = [root]
        for turn in found:
            found += turn.children
        return found


@dataclass(frozen=True, slots=True)
class Conversations:
    """All turns, each after its parent."""

    roots: list[Turn]
    long: list[Turn]

    def turns(self) -> list[Turn]:
        found = [*self.roots, *self.long]
        for turn in found:
            found += turn.children
        return found


async def drawn(tokenizer: Tokenizer, dice: Random, roots: int, depth: int = 2, long: int = 2) -> Conversations:
    """Draw so many roots, with two branches each at the first turn, and long ones."""
    made = Conversations([], [])
    for number in range(roots):
        script = await prompt_of(tokenizer, dice.randrange(1 << 30), SCRIPT)
        root = _turn(f"root-{number}", script, None, _ROOT, dice)
        made.roots.append(root)
        for branch in range(2):
            turn = root
            for level in range(1, depth if branch == 0 else 2):
                turn = _turn(f"{turn.name}.{branch}", script, turn, _CUE, dice)
                assert level < depth
    for number in range(long):
        script = await prompt_of(tokenizer, dice.randrange(1 << 30), SCRIPT)
        made.long.append(_turn(f"long-{number}", script, None, _LONG, dice))
    return made


def _turn(name: str, script: Sequence[int], parent: Turn | None, added: tuple[int, int], dice: Random) -> Turn:
    turn = Turn(name, script, parent, dice.randint(*added), dice.randint(*_ANSWER))
    if parent is not None:
        parent.children.append(turn)
    return turn
