"""kill -9, restart, and the conversations simply go on: an unmodified OpenAI client, auto-freeze, and no other call."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from cwm_connector.protocol.calls import ListArgs, Op
from cwm_connector.settings import load_settings
from cwm_mcp.api.client import ControlClient
from tests.support.engine import SERVED_NAME, Engine, EngineOptions
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
        found = await listing.call(Op.LIST, ListArgs(limit=50))
    finally:
        await listing.aclose()
    return list(found["windows"])


async def until_frozen(engine: Engine, sessions: int) -> None:
    for _ in range(ATTEMPTS):
        if len({each["session_id"] for each in await windows(engine)}) >= sessions:
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


@pytest.fixture(scope="module")
def killed(model: Any) -> Iterator[Killed]:
    settings = {"CWM_AUTO_FREEZE_ENABLED": "true", "CWM_AUTO_FREEZE_IDLE_TIMEOUT_MINUTES": "0.02"}
    options = EngineOptions(model=model, max_model_len=4096, arguments=("--dtype", "float32"), settings=settings)
    with Engine(options) as engine:
        clients = [
            client(engine, 1),
            client(engine, 2, "editor"),
            client(engine, 3, "before-the-fork"),
            client(engine, 4, "secret", cache_salt="of one tenant"),
        ]

        async def talk() -> tuple[int, dict[int, int]]:
            answers = [await each.say(QUESTION) for each in clients]
            prompts = [answer.usage.prompt_tokens for answer in answers if answer.usage is not None]
            await until_frozen(engine, len(clients))
            return await engine.api.block_tokens(), {one.seed: n for one, n in zip(clients, prompts, strict=True)}

        block, prompts = asyncio.run(talk())
        engine.kill_hard()
        engine.start()
        anonymous, named, forked, private = clients
        yield Killed(engine, block, anonymous, named, forked, private, prompts)


def whole_blocks(killed: Killed, one: Client) -> int:
    return killed.prompts[one.seed] // killed.block * killed.block


async def test_a_client_without_an_id_goes_on(killed: Killed) -> None:
    one = killed.anonymous
    assert cached(await one.say(NEXT)) >= whole_blocks(killed, one) > 0


async def test_a_session_with_an_id_goes_on(killed: Killed) -> None:
    one = killed.named
    assert cached(await one.say(NEXT)) >= whole_blocks(killed, one) > 0


async def test_a_conversation_goes_on_under_another_id(killed: Killed) -> None:
    one = killed.forked
    one.headers = {"X-Session-ID": "after-the-fork"}
    assert cached(await one.say(NEXT)) >= whole_blocks(killed, one) > 0


async def test_a_private_conversation_comes_back_for_nobody_until_it_is_thawed(killed: Killed) -> None:
    one = killed.private
    for body in ({}, {"cache_salt": "of another tenant"}, {"cache_salt": "of one tenant"}):
        guess = Client(killed.engine, 4, one.headers, body, list(one.messages))
        assert cached(await guess.say(NEXT)) == 0, body


async def test_another_question_about_another_log_gets_nothing(killed: Killed) -> None:
    assert cached(await client(killed.engine, 9, "editor").say(QUESTION)) == 0
