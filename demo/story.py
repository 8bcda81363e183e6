"""Run the demo and print each step: talk, freeze, kill -9, restart, thaw, branch, back to the stem, and just go on."""

import asyncio
import time
from typing import Any

from rich.console import Console
from rich.markup import escape

from demo.conversation import Conversation, Turn, ask_after
from demo.report import Branch, Report, Way
from tests.support.engine import Engine
from tests.support.machine import describe
from tests.support.mcp_client import ToolError, Tools, mcp_client
from tests.support.texts import project_log

SESSION = "lock-repair"
STEM = "lock-repair-evening"
RESUMED = f"{SESSION}-resumed"
"""The session that goes on at the end without a thaw."""
LOG_ENTRIES = 90
QUESTIONS = ("What did Ines Okafor find?", "What did Piet van Dijk find?", "And what did Clara Novak find?")
SMALL_TALK = "Thank you. Did you read all of it?"
NEXT = "What did Yusuf Demir find?"
BRANCHES = {
    "ask-about-the-gauge": "How does the gauge board read?",
    "write-to-the-boats": "Write a short note to the boat owners.",
}


async def run_story(console: Console, engine: Engine) -> Report:
    """Run the whole story on an engine that has not been started. It runs when the story is over."""
    began = time.monotonic()
    await _start(console, engine, "Starting vLLM with CWM")
    if engine.options.dtype == "float32":
        console.print("  It computes in float32, because this CPU has no bf16 arithmetic.")
    async with mcp_client(engine) as cwm:
        console.print("  An MCP client is connected to `python -m cwm_mcp` over stdio.")
        return await _Story(console, engine, cwm, began).run()


async def _start(console: Console, engine: Engine, title: str) -> None:
    console.rule(f"[bold]{title}")
    with console.status("waiting for /health"):
        seconds = await asyncio.to_thread(engine.start)
    # The first request of a process pays for lazy initialisation. It must not count as a time to the first token.
    await engine.api.complete("Good morning.", 2)
    console.print(f"  vLLM is up after {seconds:.0f} s (processes {', '.join(map(str, engine.processes()))}).")


class _Story:
    """The steps of the story, and what they share."""

    def __init__(self, console: Console, engine: Engine, cwm: Tools, began: float) -> None:
        self._console = console
        self._engine = engine
        self._cwm = cwm
        self._began = began
        self._chat = Conversation(engine.api)

    async def run(self) -> Report:
        """Run all steps in order and return what they measured."""
        turns = [await self._first_turn(), *[await self._turn(question) for question in QUESTIONS[1:]]]
        turns += await self._until_references_are_apart()
        stem = self._chat.ids
        frozen = await self._freeze()
        reference = await self._ask("uninterrupted", NEXT, stem, SESSION)
        branch_references = {name: await self._ask(name, asked, stem, SESSION) for name, asked in BRANCHES.items()}
        cold = await self._ask("the same, cold", NEXT, stem, None, cache_salt="nobody-was-here-before")
        await self._kill()
        await _start(self._console, self._engine, "Starting vLLM again")
        self._console.rule("[bold]Thaw and go on")
        thawed, thaw = await self._thaw_and_ask(STEM, NEXT, stem, SESSION)
        self._console.rule("[bold]Branch: two clones, two different next turns")
        branches = [await self._branch(name, asked, stem, branch_references[name]) for name, asked in BRANCHES.items()]
        self._console.rule("[bold]Back to the stem")
        back, _ = await self._thaw_and_ask(STEM, NEXT, stem, f"{SESSION}-again")
        went_on = await self._go_on(stem)
        return Report(
            machine=describe(),
            block_tokens=await self._engine.api.block_tokens(),
            stem_tokens=len(stem),
            seconds=time.monotonic() - self._began,
            turns=turns,
            frozen=frozen,
            thaw=thaw,
            cold=Way("cold", cold, None),
            prefix_hit=Way("prefix hit", reference, None),
            thawed=Way("thawed after kill -9", thawed, reference),
            branches=branches,
            back=Way("back to the stem", back, reference),
            went_on=Way("gone on, no thaw", went_on, reference),
        )

    async def _first_turn(self) -> Turn:
        self._console.rule(f"[bold]A conversation about a long working log (X-Session-ID: {SESSION})")
        return await self._turn(QUESTIONS[0], about=f"{project_log(seed=7, entries=LOG_ENTRIES)}\n")

    async def _until_references_are_apart(self) -> list[Turn]:
        """Add turns until the next one can't complete an open block.

        The uninterrupted engine answers several next turns. If the first one completed a block, the second would find
        that block in the cache, computed in another batch than in the thawed branch. Sums would then differ.
        """
        turns = []
        block = await self._engine.api.block_tokens()
        while await self._chat.completes_a_block((NEXT, *BRANCHES.values()), block):
            turns.append(await self._turn(SMALL_TALK))
        return turns

    async def _turn(self, question: str, about: str = "") -> Turn:
        turn = await self._chat.ask(question, session_id=SESSION, about=about)
        self._say(SESSION, turn)
        return turn

    async def _ask(
        self, who: str, question: str, stem: tuple[int, ...], session_id: str | None, cache_salt: str | None = None
    ) -> Turn:
        turn = await ask_after(self._engine.api, stem, question, session_id=session_id, cache_salt=cache_salt)
        self._say(who, turn)
        return turn

    def _say(self, who: str, turn: Turn) -> None:
        heard, done = turn.heard, turn.heard.completion
        self._console.print(f"  [cyan]{who}[/] ▸ {escape(turn.question)}")
        self._console.print(f"    [italic]{escape(' '.join(turn.answer.split()))}[/]")
        self._console.print(
            f"    [dim]{done.ttft_s:.2f} s to the first token. {done.prompt_tokens:,} tokens: {heard.local_hits:,} "
            f"cached, {heard.restored:,} restored, {done.prompt_tokens - done.cached_tokens:,} computed[/]"
        )

    async def _freeze(self) -> dict[str, Any]:
        self._console.rule("[bold]Freeze")
        frozen = await self._cwm.call(
            "window_freeze",
            session_id=SESSION,
            window_name=STEM,
            description="The lock's log, read and discussed",
            tags=["demo"],
        )
        self._console.print(
            f"  Window [bold]{STEM}[/] holds {frozen['captured_tokens']:,} of {frozen['token_count']:,} tokens (every "
            f"full block), {frozen['total_size_bytes'] / 1e6:.0f} MB, durable after {frozen['duration_ms']:.0f} ms."
        )
        self._console.rule("[bold]For comparison: the next turns in the uninterrupted engine")
        return frozen

    async def _kill(self) -> None:
        self._console.rule("[bold red]kill -9")
        killed = self._engine.kill_hard()
        self._console.print(
            f"  Killed {', '.join(map(str, killed))}. {len(self._engine.processes())} processes are left."
        )
        listed = await self._cwm.call("window_list")
        self._console.print(
            f"  Without an engine, window_list still shows {', '.join(w['name'] for w in listed['windows'])}."
        )
        try:
            await self._cwm.call("window_thaw", window_name=STEM)
        except ToolError as refusal:
            self._console.print(f"  window_thaw answers: [yellow]{escape(refusal.text)}[/]")

    async def _go_on(self, stem: tuple[int, ...]) -> Turn:
        """Kill vLLM once more and let an ordinary client go on, under an id that nothing was ever thawed into."""
        self._console.rule("[bold red]kill -9 again")
        self._engine.kill_hard()
        await _start(self._console, self._engine, "Starting vLLM a third time")
        self._console.rule("[bold]The conversation simply goes on: no thaw, no salt, and not even its old id")
        return await self._ask(RESUMED, NEXT, stem, RESUMED)

    async def _thaw_and_ask(
        self, window: str, question: str, stem: tuple[int, ...], session_id: str
    ) -> tuple[Turn, dict[str, Any]]:
        thaw = await self._cwm.call("window_thaw", window_name=window, new_session_id=session_id)
        tiers = ", ".join(f"{tokens:,} from {tier}" for tier, tokens in thaw["restored_by_tier"].items())
        self._console.print(
            f"  Window {window} is thawed into session {session_id}: {thaw['restorable_tokens']:,} tokens verified "
            f"({tiers}) in {thaw['restoration_time_ms']:.0f} ms."
        )
        if thaw["warning"]:
            self._console.print(f"  [yellow]{escape(thaw['warning'])}[/]")
        return await self._ask(session_id, question, stem, session_id, thaw["cache_salt"]), thaw

    async def _branch(self, name: str, question: str, stem: tuple[int, ...], reference: Turn) -> Branch:
        clone = await self._cwm.call("window_clone", source_window=STEM, target_window=name)
        shared, stored = clone["shared_blocks"], clone["new_bytes"]
        self._console.print(f"  Clone {name} shares {shared} chunks and stores {stored} bytes.")
        turn, _ = await self._thaw_and_ask(name, question, stem, name)
        return Branch(name, turn, reference, stored)
