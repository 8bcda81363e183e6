"""A conversation in the terminal is sent as the exact tokens of all that was said before."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.settings import Settings, load_settings
from cwm_mcp.api.chat.talk import Talk, Turn
from tests.cwm_mcp.vllm_server import VllmServer, events, vllm_server

PATH = "/v1/completions"
RECORDED = [5, 6, 7, 8]


@pytest.fixture
def vllm() -> Iterator[VllmServer]:
    with vllm_server() as server:
        yield server


@pytest.fixture
def settings(vllm: VllmServer) -> Settings:
    return replace(load_settings(), vllm_url=vllm.url)


async def test_each_turn_goes_on_with_the_tokens_of_all_before_it(vllm: VllmServer, settings: Settings) -> None:
    talk, shown = Talk(settings, RECORDED, "talk", "salt"), list[str]()
    first = await talk.say("Where?", shown.append, 50)
    second = await talk.say("Why?", shown.append, 50)
    reply = vllm.ids(vllm.reply)
    one, other = vllm.asked[PATH]
    assert one["prompt"][:4] == RECORDED and "Where?" in vllm.text(one["prompt"][4:])
    assert other["prompt"][: len(one["prompt"]) + len(reply)] == [*one["prompt"], *reply]
    assert "".join(shown) == vllm.reply * 2
    assert (one["cache_salt"], vllm.headers["x-session-id"], one["max_tokens"]) == ("salt", "talk", 50)
    assert first == Turn(len(one["prompt"]), 24, len(reply)) and second.prompt > first.prompt


async def test_what_was_written_before_a_fault_counts_as_said(vllm: VllmServer, settings: Settings) -> None:
    vllm.answers[PATH] = 200, events({"choices": [{"text": "Yes", "token_ids": [9]}]}, {"error": {"message": "full"}})
    talk = Talk(settings, RECORDED, "talk", "salt")
    with pytest.raises(CWMError, match="vLLM gave up the reply: full"):
        await talk.say("Where?", lambda text: None, 50)
    del vllm.answers[PATH]
    await talk.say("Why?", lambda text: None, 50)
    one, other = vllm.asked[PATH]
    assert other["prompt"][: len(one["prompt"]) + 1] == [*one["prompt"], 9]


@pytest.mark.parametrize(
    ("status", "answer", "code", "said"),
    [
        (400, {"error": {"message": "too long"}}, Code.ARGUMENT, "too long"),
        (401, {}, Code.NOT_ALLOWED, "CWM_VLLM_API_KEY"),
        (500, {}, Code.ENGINE_UNREACHABLE, "HTTP 500"),
        (200, b"data: hello\n\n", Code.ENGINE_UNREACHABLE, "does not speak vLLM's API"),
        (200, b"data: [1]\n\n", Code.ENGINE_UNREACHABLE, "does not speak vLLM's API"),
    ],
)
async def test_a_turn_that_vllm_refuses_leaves_the_conversation_as_it_was(
    vllm: VllmServer, settings: Settings, status: int, answer: object, code: Code, said: str
) -> None:
    vllm.answers[PATH] = status, answer
    talk = Talk(settings, RECORDED, "talk", "salt")
    with pytest.raises(CWMError) as raised:
        await talk.say("Where?", lambda text: None, 50)
    assert raised.value.code is code and said in raised.value.message
    del vllm.answers[PATH]
    await talk.say("Where?", lambda text: None, 50)
    one, other = vllm.asked[PATH]
    assert one["prompt"] == other["prompt"]


async def test_without_vllm_the_error_says_how_to_start_it(vllm: VllmServer, settings: Settings) -> None:
    talk = Talk(replace(settings, vllm_url="http://127.0.0.1:9"), RECORDED, "talk", "salt")
    with pytest.raises(CWMError, match="cwm serve"):
        await talk.say("Where?", lambda text: None, 50)
