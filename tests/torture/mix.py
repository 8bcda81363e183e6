"""The mix of work: what a client may do to a store, each with how often, and one hand that does it at random.

A hand deletes and changes only windows of its own, so that every acknowledgement says what stands under its name; it
reads and clones everybody's.
"""

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import msgspec

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import ChunkKey
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.vllm_parts import BLOCK_TOKENS
from tests.torture.events import Asked, Damage, Done, Refused, Step, Teller, Window
from tests.torture.texts import Run, Text, cut_to, ids_of, restorable, tokens_of

MAX_TOKENS: Final = 9 * BLOCK_TOKENS
_TOKENS_PER_LOOP: Final = 50_000
"""Each loop says tokens of its own, so that no two of its sessions are alike by accident."""


@dataclass(frozen=True, slots=True)
class Table:
    """What the hands of one child share."""

    engine: Miniature
    tell: Teller
    loop: int
    windows: dict[str, Window]
    """All that stand, as far as this child knows."""
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)


class Hand:
    """One client, that does one thing after the other."""

    def __init__(self, table: Table, number: int, dice: Random, keep: int, mix: "Mapping[str, Act]") -> None:
        """`keep`: how many windows of its own it lets stand."""
        self._mix = mix
        self._table = table
        self._number = number
        self._dice = dice
        self._keep = keep
        self._sessions: dict[str, Text] = {}

    async def work(self, acts: int | None) -> None:
        """So many acts, for ever without a number."""
        for _ in itertools.count() if acts is None else range(acts):
            if len(self._own()) >= self._keep:
                await self.delete()
            else:
                choice = list(self._mix.values())
                await self._dice.choices(choice, [act.weight for act in choice])[0].do(self)

    # --- what a hand can do ---

    async def freeze(self) -> None:
        """A session that begins, or goes on from the beginning of what somebody has frozen."""
        start: Text = ()
        if self._table.windows and self._dice.random() < 0.4:
            other = self._dice.choice(list(self._table.windows.values())).text
            start = cut_to(other, self._dice.randrange(tokens_of(other) + 1))
        await self._say_and_freeze(self._fresh("s"), start)

    async def freeze_again(self) -> None:
        """A session that has said more since."""
        if self._sessions:
            session_id = self._dice.choice(list(self._sessions))
            await self._say_and_freeze(session_id, self._sessions[session_id])

    async def thaw_and_go_on(self) -> None:
        """A window is thawed into a new session, which says more and is frozen."""
        if (window := self._any()) is not None:
            session_id = self._fresh("t")
            if await self._thaw(window, session_id):
                await self._say_and_freeze(session_id, window.text)

    async def thaw_and_read(self) -> None:
        if (window := self._any()) is not None:
            session_id = self._fresh("r")
            if await self._thaw(window, session_id):
                await self._read(window, session_id)

    async def clone(self) -> None:
        if (source := self._any()) is None:
            return
        name = self._fresh("w")
        # Everything is said, nothing inherited: the source may be changing.
        after = msgspec.structs.replace(
            source, name=name, description=f"from {source.name}", tags=("clone",), parent=source.name, size_bytes=None
        )
        args = {
            "source_window": source.name, "target_window": name, "description": after.description, "tags": ["clone"],
        }  # fmt: skip
        await self._change("clone", Op.CLONE, name, after, **args)

    async def tag(self) -> None:
        if own := self._own():
            window = self._dice.choice(own)
            after = msgspec.structs.replace(
                window, description=f"changed {next(self._table.numbers)}", tags=(*window.tags[:3], self._fresh("tag"))
            )
            removed = [tag for tag in window.tags if tag not in after.tags]
            args = {"window_name": window.name, "remove": removed, "add": [after.tags[-1]]}
            await self._change("tag", Op.TAG, window.name, after, description=after.description, **args)

    async def delete(self) -> None:
        if own := self._own():
            name = self._dice.choice(own).name
            await self._change("delete", Op.DELETE, name, None, window_name=name)

    async def trash(self) -> None:
        """As the shell deletes, and every other time brought back."""
        if own := self._own():
            window = self._dice.choice(own)
            args = {"window_name": window.name, "command": self._fresh("rm")}
            await self._change("trash", Op.TRASH, window.name, None, **args)
            if self._dice.random() < 0.5:
                await self._change("undo", Op.RESTORE, window.name, window, window_name=window.name)

    async def collect(self) -> None:
        await self._ask("collect", Op.COLLECT, None, None)

    async def verify(self) -> None:
        result = await self._ask("verify", Op.VERIFY, None, None, repair=True, rate_mb_s=0)
        if result is not None and result["bad_copies"]:
            self._table.tell(Damage(False, f"verify found {result['bad_copies']} bad copies: {result['bad'][0]}"[:500]))

    async def demote(self) -> None:
        """To Redis, as the tiering does with what is cold."""
        await self._move("demote", self._table.engine.operations.tiering.demote)

    async def restore(self) -> None:
        """Back to the disk, as the tiering does with what was read."""
        await self._move("restore", self._table.engine.operations.tiering.restore)

    async def _move(self, act: str, move: Callable[[Sequence[ChunkKey]], Awaitable[Any]]) -> None:
        if (window := self._any()) is None:
            return
        try:
            rows = await self._table.engine.catalog.run(lambda catalog: catalog.chunks_of(window.name))
        except CWMError:  # the other hand has deleted it meanwhile
            return
        id = next(self._table.numbers)
        self._table.tell(Asked(id, act))
        await move([row.key for row in rows])
        self._table.tell(Done(id))

    async def evict(self) -> None:
        """Other requests take vLLM's blocks: the next freeze computes again what it needs."""
        await self._table.engine.evict()

    # --- how ---

    async def _say_and_freeze(self, session_id: str, said: Text) -> None:
        room = MAX_TOKENS - tokens_of(said)
        if room > 0:
            said = (*said, Run(self._fresh_token(), self._dice.randint(1, room)))
        if tokens_of(said) < BLOCK_TOKENS:
            said = (*said, Run(self._fresh_token(), BLOCK_TOKENS))
        await self._table.engine.serve(ids_of(said), session_id)
        self._sessions[session_id] = said
        name = self._fresh("w")
        after = Window(name, session_id, said, f"of {session_id}", ("torture", f"loop-{self._table.loop}"))
        args = {"session_id": session_id, "window_name": name, "description": after.description}
        await self._change("freeze", Op.FREEZE, name, after, tags=list(after.tags), **args)

    async def _thaw(self, window: Window, session_id: str) -> bool:
        args = {"window_name": window.name, "new_session_id": session_id, "prewarm": self._dice.random() < 0.5}
        return await self._ask("thaw", Op.THAW, None, None, **args) is not None

    async def _read(self, window: Window, session_id: str) -> None:
        try:
            loaded = await self._table.engine.resume(ids_of(window.text), session_id)
        except AssertionError as wrong:
            self._table.tell(Damage(False, f"{window.name} was read with wrong bytes: {wrong}"))
            return
        # A window deleted meanwhile loads nothing, or what was read before its chunks went.
        if window.name in self._table.windows and loaded != restorable(window.text):
            self._table.tell(Damage(False, f"{window.name} loaded {loaded} of {restorable(window.text)} tokens"))

    async def _change(self, act: str, op: Op, name: str, after: Window | None, **args: Any) -> None:
        if after is None:
            del self._table.windows[name]  # from now on nobody can count on it
        if await self._ask(act, op, name, after, **args) is not None and after is not None:
            self._table.windows[name] = after

    async def _ask(
        self, act: str, op: Op, name: str | None, after: Window | None, **args: Any
    ) -> dict[str, Any] | None:
        """The operation's result, None if it was refused; asked, steps and answer are told."""
        tell, id = self._table.tell, next(self._table.numbers)
        tell(Asked(id, act, name, after))
        try:
            result = await self._table.engine.call(op, lambda done, total, text: tell(Step(id, text)), **args)
        except CWMError as problem:
            tell(Refused(id, int(problem.code), problem.message[:500]))
            return None
        tell(Done(id, result.get("total_size_bytes"), result.get("parent_window")))
        return result

    def _own(self) -> list[Window]:
        return [each for name, each in self._table.windows.items() if name.split("-")[1] == str(self._number)]

    def _any(self) -> Window | None:
        return self._dice.choice(list(self._table.windows.values())) if self._table.windows else None

    def _fresh(self, kind: str) -> str:
        return f"{kind}{self._table.loop}-{self._number}-{next(self._table.numbers)}"

    def _fresh_token(self) -> int:
        return self._table.loop * _TOKENS_PER_LOOP + next(self._table.numbers) * MAX_TOKENS % _TOKENS_PER_LOOP


@dataclass(frozen=True, slots=True)
class Act:
    weight: int
    do: Callable[[Hand], Awaitable[None]]


MIX: Final[dict[str, Act]] = {
    "freeze": Act(30, Hand.freeze),
    "freeze again": Act(20, Hand.freeze_again),
    "thaw and go on": Act(8, Hand.thaw_and_go_on),
    "thaw and read": Act(6, Hand.thaw_and_read),
    "clone": Act(8, Hand.clone),
    "tag": Act(6, Hand.tag),
    "delete": Act(14, Hand.delete),
    "trash": Act(8, Hand.trash),
    "evict": Act(4, Hand.evict),
    "collect": Act(4, Hand.collect),
    "verify": Act(2, Hand.verify),
}
WITH_REDIS: Final[dict[str, Act]] = {**MIX, "demote": Act(12, Hand.demote), "restore": Act(6, Hand.restore)}
"""With a second durable tier."""
