"""Real clients go on after kill -9 where they were, without a call to CWM by anybody.

Each client of the table speaks two turns. Auto-freeze saves them, the engine is killed and started again, and each
client resumes by its own means. The client's own report of its third turn and vLLM's counters show that the
conversation was read from the disk and not computed again. The test of a client that npm does not offer, or that
`tools/clients.sh` has not installed, is skipped.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import pytest

from tests.support.api import Counters
from tests.support.clients.base import Client, Said
from tests.support.clients.claude import Claude
from tests.support.clients.codex import Codex
from tests.support.clients.libraries import Aider, BehindLiteLlm, LangChain, OpenAiSdk
from tests.support.clients.npm import INSTALL_S
from tests.support.clients.open_webui import OpenWebUi
from tests.support.clients.opencode import OpenCode
from tests.support.clients.pi import Pi
from tests.support.clients.qwen_code import QwenCode
from tests.support.engine import SERVED_NAME, Engine
from tests.support.mcp_client import Tools, mcp_client
from tests.support.replay import active_session

CLIENTS: Final[tuple[type[Client], ...]] = (
    Claude,
    Codex,
    OpenCode,
    Pi,
    QwenCode,
    OpenAiSdk,
    LangChain,
    BehindLiteLlm,
    Aider,
    OpenWebUi,
)
DOORS: Final = " ".join(f"line {number}: the door is {'open' if number % 2 else 'shut'}." for number in range(40))
FROZEN_WITHIN_S: Final = 60.0
COUNTED_WITHIN_S: Final = 10.0

pytestmark = pytest.mark.timeout(len(CLIENTS) * INSTALL_S + 600)


@dataclass(frozen=True, slots=True)
class Resumed:
    """A conversation's turns before and after the restart, as client and engine counted them."""

    session_id: str
    """As CWM names it."""
    second: Said
    third: Said
    local_hits: int
    restored: int


class Conversation:
    """One client's conversation with the engine."""

    def __init__(self, client: Client, engine: Engine) -> None:
        self._client = client
        self._engine = engine
        self._second: Said | None = None
        self._session_id = ""

    async def speak(self, cwm: Tools) -> None:
        """Speak two turns."""
        first = await self._client.say(f"I am {self._client.name}. Which of these lines comes last? {DOORS}")
        began = datetime.now(UTC)
        self._second = await self._client.say("And which one before that?", first.session_id)
        self._session_id = await active_session(cwm, began)

    async def wait_until_frozen(self, cwm: Tools) -> None:
        """Wait for a window that holds both turns."""
        assert self._second is not None
        deadline = time.monotonic() + FROZEN_WITHIN_S
        while True:
            windows = (await cwm.call("window_list", session_id=self._session_id))["windows"]
            if any(window["token_count"] >= self._second.prompt_tokens for window in windows):
                return
            assert time.monotonic() < deadline, f"{self._session_id} was not frozen: {windows}"
            await asyncio.sleep(0.2)

    async def resume(self) -> Resumed:
        """Speak the third turn, which is exactly one request."""
        assert self._second is not None
        before = await self._engine.api.counters()
        third = await self._client.say("Thank you.", self._second.session_id)
        after = await self._counted(before.prompt_tokens + third.prompt_tokens)
        return Resumed(
            session_id=self._session_id,
            second=self._second,
            third=third,
            local_hits=after.local_hits - before.local_hits,
            restored=after.external_hits - before.external_hits,
        )

    async def _counted(self, prompt_tokens: int) -> Counters:
        deadline = time.monotonic() + COUNTED_WITHIN_S
        while (counters := await self._engine.api.counters()).prompt_tokens < prompt_tokens:
            missing = prompt_tokens - counters.prompt_tokens
            assert time.monotonic() < deadline, f"vLLM has not counted {missing} tokens that the client counts"
            await asyncio.sleep(0.02)
        assert counters.prompt_tokens == prompt_tokens, "the turn was not one request"
        return counters


Spoken = Mapping[type[Client], Conversation | BaseException]
"""A client that failed or is not to be had does not keep the others from their test."""


async def all_spoken_and_frozen(engine: Engine) -> Spoken:
    """Let every client speak two turns, and wait until auto-freeze has saved both of each."""
    spoken: dict[type[Client], Conversation | BaseException] = {}
    async with mcp_client(engine) as cwm:
        for kind in CLIENTS:
            home = engine.folder / f"home-of-{kind.name}"
            home.mkdir()
            try:
                conversation = Conversation(kind(home, engine.url, SERVED_NAME), engine)
                await conversation.speak(cwm)
                await conversation.wait_until_frozen(cwm)
                spoken[kind] = conversation
            except (Exception, pytest.skip.Exception) as problem:
                spoken[kind] = problem
    return spoken


@pytest.mark.survives(prepare=all_spoken_and_frozen, engine="unasked_engine")
@pytest.mark.parametrize("kind", CLIENTS, ids=lambda kind: kind.name)
async def test_a_client_resumes_after_a_kill_what_it_said_before(
    unasked_engine: Engine, before: Spoken, kind: type[Client]
) -> None:
    conversation = before[kind]
    if isinstance(conversation, BaseException):
        raise conversation
    outcome = await conversation.resume()
    block = await unasked_engine.api.block_tokens()
    if kind.identified:
        assert outcome.session_id == outcome.second.session_id == outcome.third.session_id
    else:
        assert outcome.session_id.startswith("anon-")
    kept = outcome.second.prompt_tokens - kind.rewritten_tokens
    assert outcome.third.cache_read_tokens == outcome.restored >= kept // block * block > 0
    assert outcome.local_hits == 0
