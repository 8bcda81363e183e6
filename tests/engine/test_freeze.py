"""Freezing a live session: idle, in mid-request, under load, after vLLM has evicted its blocks; and again."""

import asyncio
import time

from tests.support.engine import Engine
from tests.support.mcp_client import Tools, mcp_client
from tests.support.talk import Talk, assert_equal_where_sure, speaking, talked
from tests.support.texts import prompt_of


async def restored_by_thaw(engine: Engine, cwm: Tools, window: str, talk: Talk) -> int:
    """Thaws into a session of its own and asks on: tokens restored, by vLLM's counter."""
    thawed = await cwm.call("window_thaw", window_name=window, new_session_id=f"again-{window}")
    again = talk.branch(thawed["session_id"], thawed["cache_salt"])
    return (await again.say("\nAnd then?", max_tokens=1)).restored


async def test_freezing_an_idle_session_captures_every_full_block(engine: Engine) -> None:
    block = await engine.api.block_tokens()
    talk = await talked(engine.api, "idle", 200, tokens=1016)
    async with mcp_client(engine) as cwm:
        frozen = await cwm.call("window_freeze", session_id="idle", window_name="idle-1", tags=["t"], description="d")
        assert frozen["session_id"] == "idle"
        assert frozen["token_count"] == talk.computed_tokens
        assert frozen["captured_tokens"] == talk.full_blocks(block)
        assert frozen["captured_tokens"] > 1016, "tokens of the answer are among them"
        assert frozen["recomputed_tokens"] == 0
        assert frozen["new_bytes"] == frozen["total_size_bytes"] > 0
        assert await restored_by_thaw(engine, cwm, "idle-1", talk) >= talk.full_blocks(block)


async def test_freezing_again_stores_only_what_is_new(engine: Engine) -> None:
    talk = await talked(engine.api, "twice", 201, tokens=504)
    async with mcp_client(engine) as cwm:
        first = await cwm.call("window_freeze", session_id="twice", window_name="twice-1")
        same = await cwm.call("window_freeze", session_id="twice", window_name="twice-2")
        assert same["new_bytes"] == 0
        await talk.say(await prompt_of(engine.api, 202, 300))
        longer = await cwm.call("window_freeze", session_id="twice", window_name="twice-3")
        assert 0 < longer["new_bytes"] < first["total_size_bytes"]
        assert await restored_by_thaw(engine, cwm, "twice-3", talk) >= talk.full_blocks(await engine.api.block_tokens())


async def test_freezing_in_mid_request_takes_what_is_computed_and_disturbs_nothing(engine: Engine) -> None:
    block = await engine.api.block_tokens()
    prompt = await prompt_of(engine.api, 203, 900)
    # Through a salt of its own, so that the running request below starts cold.
    undisturbed = await engine.api.complete(prompt, 200, cache_salt="undisturbed")
    async with mcp_client(engine) as cwm:
        request = await speaking(engine.api, prompt, 200, session_id="running")
        frozen = await cwm.call("window_freeze", session_id="running", window_name="running-1")
        assert not request.done(), "the request was over before the freeze: this test tests nothing"
        assert 900 <= frozen["token_count"] < 1100
        assert (await request).token_ids == undisturbed.token_ids
        talk = Talk(engine.api, "running")
        talk.ids = [*prompt, *undisturbed.token_ids][: frozen["token_count"] + 1]
        assert await restored_by_thaw(engine, cwm, "running-1", talk) >= 900 // block * block


async def test_freezing_under_load_of_other_sessions_is_exact(engine: Engine) -> None:
    talk = await talked(engine.api, "amid", 204, tokens=632)
    calm = talk.branch("amid")
    prompts = [await prompt_of(engine.api, 205 + n, 400) for n in range(3)]
    async with mcp_client(engine) as cwm:
        load = await asyncio.gather(
            *(speaking(engine.api, prompt, 150, session_id=f"noise-{n}") for n, prompt in enumerate(prompts))
        )
        frozen = await cwm.call("window_freeze", session_id="amid", window_name="amid-1")
        assert not any(request.done() for request in load), "the load was over before the freeze"
        assert frozen["recomputed_tokens"] == 0
        assert all(len(answer.token_ids) == 150 for answer in await asyncio.gather(*load))
        reference = await calm.say(talk.cue(), logprobs=5)
        thawed = await cwm.call("window_thaw", window_name="amid-1", new_session_id="amid-again")
        heard = await talk.branch("amid-again", thawed["cache_salt"]).say(talk.cue(), logprobs=5)
    assert heard.restored >= talk.full_blocks(await engine.api.block_tokens())
    assert heard.completion.token_ids == reference.completion.token_ids
    assert heard.completion.top_logprobs == reference.completion.top_logprobs


async def test_evicted_blocks_are_computed_again_and_counted(engine: Engine) -> None:
    block = await engine.api.block_tokens()
    talk = await talked(engine.api, "evicted", 210, tokens=888)
    uninterrupted = await talk.branch("evicted-reference").say(talk.cue(), logprobs=5)
    for n in range(3):
        # 6,300 tokens of others in a KV cache of 6,144.
        await engine.api.complete(await prompt_of(engine.api, 211 + n, 2100), 1, session_id=f"crowd-{n}")
    async with mcp_client(engine) as cwm:
        frozen = await cwm.call("window_freeze", session_id="evicted", window_name="evicted-1")
        assert frozen["recomputed_tokens"] > 0
        assert frozen["captured_tokens"] == talk.full_blocks(block)
        prefix_hit = await talk.branch("evicted").say(talk.cue(), logprobs=5)
        thawed = await cwm.call("window_thaw", window_name="evicted-1", new_session_id="evicted-again")
        heard = await talk.branch("evicted-again", thawed["cache_salt"]).say(talk.cue(), logprobs=5)
    assert heard.restored == prefix_hit.local_hits == talk.full_blocks(block)
    assert heard.completion.token_ids == prefix_hit.completion.token_ids
    assert heard.completion.top_logprobs == prefix_hit.completion.top_logprobs
    assert_equal_where_sure(heard.completion, uninterrupted.completion)
    assert thawed["recompute_is_faster"] is False


async def test_the_pace_of_prompts_is_what_a_client_sees_of_it(engine: Engine) -> None:
    prompt = await prompt_of(engine.api, 230, 2000)
    began = time.monotonic()
    await engine.api.complete(prompt, 1, session_id="paced")
    seen = len(prompt) / (time.monotonic() - began)
    async with mcp_client(engine) as cwm:
        (rate,) = (await cwm.call("get_metrics_data", prefix="cwm_prefill"))["metrics"]
    assert seen / 4 < rate["value"] < seen * 4
