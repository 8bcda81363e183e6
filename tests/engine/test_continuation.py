"""window_thaw with a continuation_prompt against a real vLLM: exact to the token, restored, kept with what follows."""

import json

import pytest
from mcp.types import TextResourceContents

from tests.support.engine import Engine
from tests.support.mcp_client import ToolError, Tools, mcp_client
from tests.support.talk import talked

TURN = "<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
"""The small model's template around a user's turn, the end of its own words in front."""


async def read(cwm: Tools, uri: str) -> str:
    (content,) = (await cwm.client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return content.text


async def token_ids(cwm: Tools, window: str) -> list[int]:
    return list(json.loads(await read(cwm, f"window://{window}/tokens?limit=100000"))["token_ids"])


async def test_a_reply_goes_on_from_the_recorded_tokens(engine: Engine) -> None:
    talk = await talked(engine.api, "asked", 340, tokens=504)
    recorded = talk.ids[: talk.computed_tokens]
    turn = await engine.api.tokenize(TURN)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="asked", window_name="asked-1")
        assert await token_ids(cwm, "asked-1") == recorded
        thawed = await cwm.call(
            "window_thaw",
            window_name="asked-1",
            new_session_id="asked-on",
            continuation_prompt="And then?",
            max_tokens=16,
        )
        # The session that the reply was spoken in can be frozen like any other, and holds it.
        await cwm.call("window_freeze", session_id="asked-on", window_name="asked-2")
        went_on = await token_ids(cwm, "asked-2")
    used = thawed["reply_tokens"]
    assert used["prompt"] == len(recorded) + len(turn)
    assert used["cached"] >= talk.full_blocks(await engine.api.block_tokens()) > 0
    assert 1 <= used["generated"] <= 16
    assert went_on[: used["prompt"]] == recorded + turn
    kept = await engine.api.detokenize(went_on[used["prompt"] :])
    assert thawed["reply"].startswith(kept.rstrip("\N{REPLACEMENT CHARACTER}"))


async def test_a_conversation_over_several_thaws_keeps_every_turn(engine: Engine) -> None:
    await talked(engine.api, "several", 341, tokens=504)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="several", window_name="several-0")
        for turn in (1, 2):
            await cwm.call(
                "window_thaw",
                window_name=f"several-{turn - 1}",
                new_session_id=f"several-{turn}",
                continuation_prompt=f"Question {turn}?",
                max_tokens=8,
            )
            await cwm.call("window_freeze", session_id=f"several-{turn}", window_name=f"several-{turn}")
        first, last = await token_ids(cwm, "several-0"), await token_ids(cwm, "several-2")
        text = await engine.api.detokenize(last)
    assert last[: len(first)] == first
    for turn in (1, 2):
        assert text.count(f"<|im_end|>\n<|im_start|>user\nQuestion {turn}?<|im_end|>\n<|im_start|>assistant\n") == 1


async def test_the_transcript_is_what_was_said(engine: Engine) -> None:
    talk = await talked(engine.api, "transcribed", 342, tokens=300, answer=4)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="transcribed", window_name="transcribed-1")
        text = await read(cwm, "window://transcribed-1/transcript")
    assert text == await engine.api.detokenize(talk.ids[: talk.computed_tokens])


async def test_a_prompt_beyond_the_models_context_is_refused_before_the_thaw(engine: Engine) -> None:
    await talked(engine.api, "too-much", 343, tokens=300, answer=4)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="too-much", window_name="too-much-1")
        with pytest.raises(ToolError) as refused:
            await cwm.call("window_thaw", window_name="too-much-1", continuation_prompt="on and on " * 4_000)
        status = await cwm.call("window_status", window_name="too-much-1")
    assert refused.value.code == 1003
    assert status["timestamps"]["thawed_at"] is None
