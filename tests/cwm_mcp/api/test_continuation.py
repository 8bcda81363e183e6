"""window_thaw with a continuation_prompt: what is sent to vLLM, to the token, and what comes back."""

import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from mcp import Client

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Op, ThawArgs
from cwm_connector.settings import Settings
from cwm_mcp.api import continuation
from cwm_mcp.server.app import build_server
from tests.cwm_mcp.canned import CannedEngine, canned_engine
from tests.cwm_mcp.server.test_tools import answer, error
from tests.cwm_mcp.vllm_server import VllmServer, vllm_server

THAWED = {
    "session_id": "talk",
    "cache_salt": "cwm-salt",
    "window_name": "w",
    "token_count": 20,
    "restorable_tokens": 16,
    "restored_by_tier": {"cpu": 16},
    "restoration_time_ms": 1.5,
    "partial": False,
    "warning": None,
    "recompute_is_faster": None,
}
PAST = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich gate?<|im_end|>\n<|im_start|>assistant\nThe north"
)
TURN = "<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
ASK: dict[str, Any] = {"window_name": "w", "continuation_prompt": "And then?"}


@pytest.fixture
def vllm() -> Iterator[VllmServer]:
    with vllm_server() as server:
        yield server


@pytest.fixture
def served(settings: Settings, vllm: VllmServer) -> Settings:
    return replace(settings, vllm_url=vllm.url, vllm_api_key="key")


def recorded(ids: Sequence[int]) -> dict[str, Any]:
    return {"window_name": "w", "token_ids": array("i", ids).tobytes()}


def thaws(engine: CannedEngine) -> list[ThawArgs]:
    return [args for args in engine.asked if isinstance(args, ThawArgs)]


async def sent(served: Settings, vllm: VllmServer, past: Sequence[int], **more: Any) -> dict[str, Any]:
    """The body of the completion that vLLM was asked for."""
    async with canned_engine(served, TOKENS=recorded(past), THAW=THAWED), Client(build_server(served)) as client:
        await answer(client, "window_thaw", **ASK, **more)
    (body,) = vllm.asked["/v1/completions"]
    return body


# --- what is sent ---


async def test_the_recorded_ids_are_sent_with_only_the_new_turn_behind_them(served: Settings, vllm: VllmServer) -> None:
    past = vllm.ids(PAST)
    body = await sent(served, vllm, past)
    assert body["prompt"] == past + vllm.ids(TURN)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n"])
async def test_the_end_of_the_models_words_is_sent_once_even_where_it_is_recorded(
    served: Settings, vllm: VllmServer, end: str
) -> None:
    body = await sent(served, vllm, vllm.ids(PAST + end))
    assert vllm.text(body["prompt"]) == PAST + TURN


async def test_a_past_that_the_template_would_render_otherwise_is_not_rendered(
    served: Settings, vllm: VllmServer
) -> None:
    # One token for each character, as no tokenizer would cut the text again.
    past = [vllm.ids(letter)[0] for letter in "User: which gate? Assistant: the north"]
    assert vllm.ids(vllm.text(past)) != past
    body = await sent(served, vllm, past)
    assert body["prompt"][: len(past)] == past


async def test_a_model_without_a_chat_template_reads_the_prompt_as_it_is(served: Settings, vllm: VllmServer) -> None:
    vllm.template = None
    past = vllm.ids("The lock was built")
    body = await sent(served, vllm, past)
    assert body["prompt"] == past + vllm.ids("And then?")


async def test_the_reply_is_asked_for_in_the_thaws_session_and_under_its_salt(
    served: Settings, vllm: VllmServer
) -> None:
    body = await sent(served, vllm, vllm.ids(PAST), max_tokens=7)
    assert (body["cache_salt"], body["max_tokens"]) == ("cwm-salt", 7)
    assert vllm.headers["x-session-id"] == "talk"
    assert vllm.headers["authorization"] == "Bearer key"


async def test_a_reply_never_asks_for_more_than_the_models_context_holds(served: Settings, vllm: VllmServer) -> None:
    past = vllm.ids(PAST)
    vllm.max_model_len = len(past) + len(vllm.ids(TURN)) + 3
    assert (await sent(served, vllm, past))["max_tokens"] == 3


# --- what comes back ---


async def test_the_reply_comes_with_what_a_client_needs_to_go_on(served: Settings, vllm: VllmServer) -> None:
    async with canned_engine(served, TOKENS=recorded(vllm.ids(PAST)), THAW=THAWED), Client(build_server(served)) as c:
        result = await answer(c, "window_thaw", **ASK)
    assert result["reply"] == "The north gate."
    assert result["reply_finish_reason"] == "stop"
    assert result["reply_tokens"] == {"prompt": 30, "cached": 24, "generated": 5}
    assert {key: result[key] for key in THAWED} == THAWED
    assert (result["tokens_uri"], result["transcript_uri"]) == ("window://w/tokens", "window://w/transcript")


async def test_a_vllm_that_does_not_tell_what_was_cached_leaves_it_unknown(served: Settings, vllm: VllmServer) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 5, "prompt_tokens_details": None}
    vllm.answers["/v1/completions"] = 200, {"choices": [{"text": "x", "finish_reason": "length"}], "usage": usage}
    async with canned_engine(served, TOKENS=recorded(vllm.ids(PAST)), THAW=THAWED), Client(build_server(served)) as c:
        result = await answer(c, "window_thaw", **ASK)
    assert result["reply_tokens"] == {"prompt": 30, "cached": None, "generated": 5}


async def test_without_a_prompt_vllm_is_not_asked(served: Settings, vllm: VllmServer) -> None:
    async with canned_engine(served, THAW=THAWED) as engine, Client(build_server(served)) as client:
        result = await answer(client, "window_thaw", window_name="w")
    assert "reply" not in result
    assert engine.asked == [ThawArgs(window_name="w")]
    assert vllm.asked == {}


# --- what goes wrong ---


async def test_a_prompt_that_cannot_be_sent_leaves_no_thaw_behind(served: Settings, vllm: VllmServer) -> None:
    past = vllm.ids(PAST)
    engine_is_there = canned_engine(served, TOKENS=recorded(past), THAW=THAWED)
    async with engine_is_there as engine, Client(build_server(served)) as client:
        vllm.max_model_len = len(past)
        too_long = await error(client, "window_thaw", **ASK)
        vllm.answers["/tokenize"] = 401, {"error": "Unauthorized"}
        no_key = await error(client, "window_thaw", **ASK)
        vllm.answers["/tokenize"] = 404, {}
        no_path = await error(client, "window_thaw", **ASK)
        vllm.answers["/tokenize"] = 200, b"<html>"
        something_else = await error(client, "window_thaw", **ASK)
        del vllm.answers["/tokenize"]
        vllm.template, vllm.refusal = None, "roles must alternate.\nTraceback"
        refused = await error(client, "window_thaw", **ASK)
    assert [each["code"] for each in (too_long, no_key, no_path, something_else, refused)] == [
        *(1003, 8001, 5001, 5001, 1003)
    ]
    assert "roles must alternate;" in refused["message"]
    assert thaws(engine) == []


async def test_no_vllm_is_5001_and_leaves_no_thaw_behind(settings: Settings) -> None:
    engine_is_there = canned_engine(settings, TOKENS=recorded([1, 2]), THAW=THAWED)
    async with engine_is_there as engine, Client(build_server(settings)) as client:
        about = await error(client, "window_thaw", **ASK)
    assert (about["code"], about["retryable"]) == (5001, True)
    assert "CWM_VLLM_URL" in about["message"]
    assert thaws(engine) == []


@pytest.mark.parametrize(("status", "code"), [(500, 5001), (400, 1003)])
async def test_a_thaw_without_its_reply_says_so_and_can_be_gone_on_with(
    served: Settings, vllm: VllmServer, status: int, code: int
) -> None:
    vllm.answers["/v1/completions"] = status, {"error": {"message": "no"}}
    async with canned_engine(served, TOKENS=recorded(vllm.ids(PAST)), THAW=THAWED), Client(build_server(served)) as c:
        about = await error(c, "window_thaw", **ASK)
    assert about["code"] == code
    assert "is thawed into session 'talk'" in about["message"]
    assert about["context"] == {"session_id": "talk", "cache_salt": "cwm-salt"}
    assert "cwm-salt" not in about["message"]


async def test_a_reply_that_never_comes_is_6001(
    served: Settings, vllm: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuation, "_REPLY_TIMEOUT_S", 0.2)
    vllm.answers["/v1/completions"] = threading.Event()
    async with canned_engine(served, TOKENS=recorded(vllm.ids(PAST)), THAW=THAWED), Client(build_server(served)) as c:
        about = await error(c, "window_thaw", **ASK)
    assert (about["code"], about["retryable"]) == (6001, True)


async def test_a_window_that_is_not_there_is_the_engines_2002(served: Settings, vllm: VllmServer) -> None:
    nothing = CWMError(Code.WINDOW_NOT_FOUND, "no window named 'w'; window_list shows what there is")
    async with canned_engine(served, **{Op.TOKENS.name: nothing}), Client(build_server(served)) as client:
        assert (await error(client, "window_thaw", **ASK))["code"] == 2002
    assert vllm.asked == {}
