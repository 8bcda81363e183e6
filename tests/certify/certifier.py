"""Makes windows on a real vLLM, thaws them, some after kill -9, and compares how each goes on.

For each window:

    the session talks -> it is asked on (uninterrupted) -> the same request without a session (prefix hit)
    -> freeze with a proof -> … -> thaw -> the same request with the thaw's salt

The three requests have the same tokens, and the same blocks come before what they compute, so that their logprobs have
to be equal bit for bit. Load beside a window runs during its freeze and during its thaw with the load that follows it.
The three answers are computed alone, because a batch changes logprobs by itself.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.certify.cases import Case, Moment
from tests.certify.compare import difference
from tests.certify.noise import LOGPROBS, TOKENS, noise_floor
from tests.certify.report import Compared, Report
from tests.support.api import Completion
from tests.support.engine import Engine
from tests.support.mcp_client import Tools, mcp_client
from tests.support.talk import SCRIPT, Talk
from tests.support.texts import prompt_of

ANSWER = 12
LOAD_STREAMS = 2
WINDOWS_PER_LIFE = 52
"""Of one engine, before it is killed."""


@dataclass(frozen=True, slots=True)
class Made:
    """A frozen window, and what its session went on with."""

    case: Case
    ids: list[int]
    """The window's tokens and the one that was sampled last."""
    prompt: list[int]
    restorable: int
    uninterrupted: Completion
    hit: Completion


class Certifier:
    """Over one engine, which `run` starts and kills. `deadline`: no window is begun later (`time.monotonic`)."""

    def __init__(self, engine: Engine, cases: list[Case], deadline: float) -> None:
        self._engine = engine
        self._api = engine.api
        self._cases = cases
        self._deadline = deadline
        self._block_tokens = 0
        self._talks: list[list[int]] = []
        self.report = Report(asked=len(cases))

    def run(self, seed: int, noise_rounds: int) -> Report:
        """Certify the cases, as many in each life of the engine as it has room for."""
        began = time.monotonic()
        self._engine.start()
        for start in range(0, len(self._cases), WINDOWS_PER_LIFE):
            made = asyncio.run(self._first_life(self._cases[start : start + WINDOWS_PER_LIFE]))
            if any(each.case.moment is Moment.RESTARTED for each in made):
                self._engine.restart()
                self.report.restarts += 1
                asyncio.run(self._thaw_all([each for each in made if each.case.moment is Moment.RESTARTED]))
            self._talks.clear()
        self.report.noise = asyncio.run(noise_floor(self._api, seed, noise_rounds))
        self.report.seconds = time.monotonic() - began
        return self.report

    # --- the life before kill -9 ---

    async def _first_life(self, cases: list[Case]) -> list[Made]:
        self._block_tokens = await self._api.block_tokens()
        made = []
        async with mcp_client(self._engine) as cwm:
            for case in cases:
                if time.monotonic() > self._deadline:
                    break
                one = await self._make(cwm, case)
                made.append(one)
                if case.moment is Moment.AT_ONCE:
                    await self._compare(cwm, one)
            for one in made:
                if one.case.moment is Moment.LATER:
                    await self._compare(cwm, one)
        return made

    async def _make(self, cwm: Tools, case: Case) -> Made:
        talk = await self._talk(case)
        prompt, restorable = [*talk.ids, *talk.cue()], talk.full_blocks(self._block_tokens)
        own = await self._api.complete(prompt, TOKENS, session_id=talk.session_id, logprobs=LOGPROBS)
        hit = await self._api.complete(prompt, TOKENS, logprobs=LOGPROBS)
        for what, answer in (("uninterrupted session", own), ("prefix hit", hit)):
            if answer.cached_tokens != restorable:
                self.report.failures.append(f"{case}: the {what} hit {answer.cached_tokens} of {restorable} tokens")
        async with self._load(case):
            frozen = await cwm.call("window_freeze", session_id=case.name, window_name=case.name, prove=not case.load)
        if not case.load and frozen.get("proof") is None:
            self.report.failures.append(f"{case}: {frozen.get('no_proof')}")
        return Made(case, list(talk.ids), prompt, restorable, own, hit)

    async def _talk(self, case: Case) -> Talk:
        """A session of one turn, which begins like an earlier one if the case says so."""
        script = await prompt_of(self._api, case.seed, SCRIPT)
        talk = Talk(self._api, case.name, script=script)
        if case.branch is not None and self._talks:
            before = self._talks[case.seed % len(self._talks)]
            talk.ids = before[: min(int(len(before) * case.branch), case.length - 1)]
        await talk.say(talk.cue(case.length - len(talk.ids)), ANSWER)
        self._talks.append(list(talk.ids))
        return talk

    # --- thaws ---

    async def _thaw_all(self, made: list[Made]) -> None:
        async with mcp_client(self._engine) as cwm:
            for one in made:
                await self._compare(cwm, one)

    async def _compare(self, cwm: Tools, one: Made) -> None:
        case = one.case
        first: Completion | None = None
        async with self._load(case):
            thawed = await cwm.call("window_thaw", window_name=case.name, new_session_id=f"{case.name}-again")
            if case.load:
                # The blocks are loaded beside the others. The answer that is compared finds them in the prefix cache.
                first = await self._api.complete(one.prompt, 1, cache_salt=thawed["cache_salt"])
        heard = await self._api.complete(one.prompt, TOKENS, cache_salt=thawed["cache_salt"], logprobs=LOGPROBS)
        self.report.compared.append(
            Compared(
                case=case,
                tokens=len(one.ids) - 1,
                restorable=one.restorable,
                restored=(first or heard).cached_tokens,
                tiers=tuple(sorted(thawed["restored_by_tier"])),
                to_hit=difference(heard, one.hit),
                to_uninterrupted=difference(heard, one.uninterrupted),
                proof=None if case.load else await self._proof(cwm, case),
            )
        )
        print(f"{len(self.report.compared)} of {self.report.asked}: {case}", flush=True)

    async def _proof(self, cwm: Tools, case: Case) -> str:
        thawed = await cwm.call("window_thaw", window_name=case.name, new_session_id=f"{case.name}-proof", prove=True)
        return str(thawed["proof"])

    # --- load ---

    @asynccontextmanager
    async def _load(self, case: Case) -> AsyncIterator[None]:
        """Other requests run meanwhile, and are over afterwards."""
        begun = asyncio.Event()
        streams = [
            asyncio.create_task(
                self._api.complete(
                    await prompt_of(self._api, 90_000 + 10 * case.seed + number, 140),
                    24,
                    cache_salt=f"load-{case.seed}-{number}",
                    on_token=lambda _: begun.set(),
                )
            )
            for number in range(LOAD_STREAMS if case.load else 0)
        ]
        if streams:
            await begun.wait()
        try:
            yield
        finally:
            await asyncio.gather(*streams)
