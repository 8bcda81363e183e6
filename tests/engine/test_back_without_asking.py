"""kill -9, restart, and the conversations simply go on: an unmodified OpenAI client, auto-freeze, and no other call."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from cwm_connector.protocol.calls import ListArgs, Op
from cwm_connector.settings import load_settings
from cwm_mcp.api.client import ControlClient
from tests.support.engine import SERVED_NAME, Engine
from tests.support.texts import project_log

QUESTION, NEXT = "Who keeps the log? Answer with a name.", "And who repairs the gate?"
ATTEMPTS = 240


@dataclass
class Client:
    """An OpenAI client with one conversation, and perhaps with a header or a field of its own."""

    engine: Engine
    seed: int
    headers: dict[str, str]
    body: dict[str, Any]
    messages: list[dict[str, str]]

    async def say(self, text: str, **other: str) -> ChatCompletion:
        self.messages.append({"role": "user", "content": text})
        async with AsyncOpenAI(base_url=f"{self.engine.url}/v1", api_key="none") as openai:
            answer: ChatCompletion = await openai.chat.completions.create(
                model=SERVED_NAME,
                messages=self.messages,  # type: ignore[arg-type]
                max_tokens=12,
                temperature=0,
                extra_headers={**self.headers, **other},
                extra_body=self.body,
            )
        self.messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
        return answer


def client(engine: Engine, seed: int, session: str | None = None, **body: Any) -> Client:
    headers = {} if session is None else {"X-Session-ID": session}
    log = project_log(seed=seed, entries=8)
    return Client(engine, seed, headers, body, [{"role": "system", "content": f"Answer from this log.\n{log}"}])


def cached(answer: ChatCompletion) -> int:
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


async def windows(engine: Engine) -> list[dict[str, Any]]:
    socket = load_settings({"home": str(engine.home)}).socket_path
    listing = ControlClient(socket, "a test")
    try:
        found = await listing.call(Op.LIST, ListArgs(limit=100))
    finally:
        await listing.aclose()
    return list(found["windows"])


async def frozen_sessions(engine: Engine) -> set[str]:
    return {each["session_id"] for each in await windows(engine)}


async def until_frozen(engine: Engine, sessions: int) -> None:
    for _ in range(ATTEMPTS):
        if len(await frozen_sessions(engine)) >= sessions:
            return
        await asyncio.sleep(0.25)
    raise AssertionError("auto-freeze has not frozen every session")


@dataclass
class Killed:
    engine: Engine
    block: int
    anonymous: Client
    named: Client
    forked: Client
    private: Client
    prompts: dict[int, int]
    """By seed: the tokens of the first prompt."""


async def talked_and_frozen(engine: Engine) -> Killed:
    """Let four clients speak a turn each, and wait until auto-freeze has saved all four."""
    anonymous, named = client(engine, 1), client(engine, 2, "editor")
    forked, private = client(engine, 3, "before-the-fork"), client(engine, 4, "secret", cache_salt="of one tenant")
    clients = (anonymous, named, forked, private)
    before = len(await frozen_sessions(engine))
    answers = [await each.say(QUESTION) for each in clients]
    prompts = {
        one.seed: answer.usage.prompt_tokens
        for one, answer in zip(clients, answers, strict=True)
        if answer.usage is not None
    }
    await until_frozen(engine, before + len(clients))
    block = await engine.api.block_tokens()
    return Killed(engine, block, anonymous, named, forked, private, prompts)


pytestmark = pytest.mark.survives(prepare=talked_and_frozen, engine="unasked_engine")


def whole_blocks(before: Killed, one: Client) -> int:
    return before.prompts[one.seed] // before.block * before.block


async def test_a_client_without_an_id_goes_on(before: Killed) -> None:
    one = before.anonymous
    assert cached(await one.say(NEXT)) >= whole_blocks(before, one) > 0


async def test_a_session_with_an_id_goes_on(before: Killed) -> None:
    one = before.named
    assert cached(await one.say(NEXT)) >= whole_blocks(before, one) > 0


async def test_a_conversation_goes_on_under_another_id(before: Killed) -> None:
    one = before.forked
    one.headers = {"X-Session-ID": "after-the-fork"}
    assert cached(await one.say(NEXT)) >= whole_blocks(before, one) > 0


async def test_a_private_conversation_comes_back_for_nobody_until_it_is_thawed(before: Killed) -> None:
    one = before.private
    for body in ({}, {"cache_salt": "of another tenant"}, {"cache_salt": "of one tenant"}):
        guess = Client(before.engine, 4, one.headers, body, list(one.messages))
        assert cached(await guess.say(NEXT)) == 0, body


async def test_another_question_about_another_log_gets_nothing(before: Killed) -> None:
    assert cached(await client(before.engine, 9, "editor").say(QUESTION)) == 0
