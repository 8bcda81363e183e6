"""Two real vLLM servers with homes of their own, one Redis: windows of one are the other's too, and Redis may fail.

The second server's chunk folder is a small tmpfs where this user may mount one, so that its disk fills up.
"""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.api import Measured
from tests.support.engine import Engine, EngineOptions, Launch, kv_bytes_per_token, quick_dtype
from tests.support.mcp_client import ToolError, Tools, mcp_client
from tests.support.redis_server import RedisServer, redis_server
from tests.support.talk import Talk, talked

DISK_TOKENS = 2200
"""Two windows of 760 tokens fit, but not three."""
ANSWER_S = 45
"""Longer than any of a tier's own time-outs; nothing may take longer with Redis away."""


@dataclass(frozen=True, slots=True)
class Shared:
    redis: RedisServer
    first: Engine
    second: Engine


@pytest.fixture(scope="module")
def shared(shallow_model: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    small = tmp_path_factory.mktemp("small-disk")
    size = DISK_TOKENS * kv_bytes_per_token(shallow_model, quick_dtype())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], capture_output=True)
    try:
        with redis_server(append_fsync="always") as redis:
            common = {"CWM_REDIS_URL": redis.url, "CWM_CATALOG": "redis"}
            one = EngineOptions(model=shallow_model, max_model_len=4096, kv_tokens=6144, settings=common)
            two = EngineOptions(
                model=shallow_model,
                max_model_len=4096,
                kv_tokens=6144,
                settings=common | {"CWM_DISK_PATH": str(small / "chunks")},
            )
            with ExitStack() as stack, ThreadPoolExecutor() as starting:
                first, second = starting.map(stack.enter_context, (Engine(one, launch), Engine(two, launch)))
                yield Shared(redis, first, second)
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", small], check=True)


async def told(engine: Engine, session: str, seed: int, tokens: int = 504) -> tuple[Talk, Measured, int]:
    """A session, what its engine answers next from its own prefix cache, and the session's full blocks."""
    talk = await talked(engine.api, session, seed, tokens=tokens)
    uninterrupted = talk.branch(session)
    answer = await uninterrupted.say(talk.cue(), logprobs=5)
    return talk, answer, talk.full_blocks(await engine.api.block_tokens())


async def test_a_window_frozen_in_one_engine_is_listed_and_thawed_in_the_other_though_the_first_is_dead(
    shared: Shared,
) -> None:
    talk, answer, full = await told(shared.first, "alice", 900)
    async with mcp_client(shared.first) as cwm:
        frozen = await cwm.call("window_freeze", session_id="alice", window_name="shared-1", tags=["both"])
    assert frozen["tiers"] == dict.fromkeys(("cpu", "disk", "redis"), frozen["block_count"])
    shared.first.kill_hard()
    async with mcp_client(shared.second) as cwm:
        listed = (await cwm.call("window_list", tags=["both"]))["windows"]
        assert [(each["name"], each["storage_tier"]) for each in listed] == [("shared-1", "redis")]
        thawed = await cwm.call("window_thaw", window_name="shared-1", new_session_id="bob")
    assert thawed["restored_by_tier"] == {"redis": full} and not thawed["partial"]
    heard = await talk_of(shared.second, talk, "bob", thawed["cache_salt"]).say(talk.cue(), logprobs=5)
    assert heard.restored == full
    assert heard.completion.token_ids == answer.completion.token_ids
    assert heard.completion.top_logprobs == answer.completion.top_logprobs
    shared.first.start()
    async with mcp_client(shared.first) as cwm:
        await cwm.call("window_delete", window_name="shared-1", force=True)
    async with mcp_client(shared.second) as cwm:
        assert not (await cwm.call("window_list", tags=["both"]))["windows"]


def talk_of(engine: Engine, talk: Talk, session: str, salt: str | None = None) -> Talk:
    """The same words, said to another engine."""
    other = Talk(engine.api, session, salt, talk._script)
    other.ids = list(talk.ids)
    return other


async def test_a_full_disk_refuses_the_freeze_whole_and_the_engine_serves_on(shared: Shared) -> None:
    if not Path(shared.second.options.settings["CWM_DISK_PATH"]).parent.is_mount():
        pytest.skip("this user may not mount a small file system")
    async with mcp_client(shared.second) as cwm:
        names = []
        with pytest.raises(ToolError) as refused:
            for number in range(12):
                await talked(shared.second.api, f"filler-{number}", 910 + number, tokens=760)
                await cwm.call("window_freeze", session_id=f"filler-{number}", window_name=f"filler-{number}")
                names.append(f"filler-{number}")
        assert refused.value.code == 4003 and names
        listed = {each["name"] for each in (await cwm.call("window_list", search="filler"))["windows"]}
        assert listed == set(names)
        heard = await Talk(shared.second.api, "after").say("Still there?", max_tokens=2)
        assert len(heard.completion.token_ids) == 2
        for name in names:
            await cwm.call("window_delete", window_name=name, force=True)
        again = await cwm.call("window_freeze", session_id=f"filler-{len(names)}", window_name="fits-now")
        assert again["block_count"] > 0
        await cwm.call("window_delete", window_name="fits-now", force=True)


async def test_redis_killed_during_a_freeze_and_a_thaw_costs_those_and_nothing_else(shared: Shared) -> None:
    engine, redis = shared.first, shared.redis
    talk, _, _ = await told(engine, "carol", 930)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="carol", window_name="before-1")
        await talked(engine.api, "dave", 931, tokens=1016)
        freezing = asyncio.create_task(cwm.call("window_freeze", session_id="dave", window_name="torn-1"))
        await asyncio.sleep(0)
        redis.kill()
        outcome = (await asyncio.gather(freezing, return_exceptions=True))[0]
        begun = time.monotonic()
        with pytest.raises(ToolError) as refused:
            await cwm.call("window_thaw", window_name="before-1", new_session_id="carol-2")
        assert refused.value.code == 5002 and refused.value.retryable
        assert time.monotonic() - begun < ANSWER_S
        heard = await Talk(engine.api, "meanwhile").say("Go on without it.", max_tokens=4)
        assert len(heard.completion.token_ids) == 4
        health = await cwm.call("health_check")
        assert health["status"] == "degraded"
        redis.start()
        names = await listed_again(cwm)
        if isinstance(outcome, ToolError):
            assert outcome.code == 5002  # refused, or unknown: then the list decides
        else:
            assert "torn-1" in names
        assert "before-1" in names
        thawed = await cwm.call("window_thaw", window_name="before-1", new_session_id="carol-2")
        assert not thawed["partial"]
        if "torn-1" in names:
            assert not (await cwm.call("window_thaw", window_name="torn-1", new_session_id="dave-2"))["partial"]
    heard = await talk.branch("carol-2", thawed["cache_salt"]).say("\nAnd then?", max_tokens=1)
    assert heard.restored > 0


async def listed_again(cwm: Tools) -> set[str]:
    """The windows once Redis is back: catalog and chunks both answer."""
    deadline = time.monotonic() + ANSWER_S
    while (await cwm.call("health_check", component="redis"))["status"] != "healthy" or (
        await cwm.call("health_check", component="catalog")
    )["status"] != "healthy":
        assert time.monotonic() < deadline, "it did not recover by itself"
    return {each["name"] for each in (await cwm.call("window_list", limit=100))["windows"]}


async def test_a_redis_that_answers_nothing_holds_nobody_up_beyond_the_time_outs(shared: Shared) -> None:
    engine, redis = shared.second, shared.redis
    talk, answer, full = await told(engine, "erin", 940)
    async with mcp_client(engine) as cwm:
        await cwm.call("window_freeze", session_id="erin", window_name="paused-1")
        thawed = await cwm.call("window_thaw", window_name="paused-1", new_session_id="erin-2")
        await talked(engine.api, "filling", 941, tokens=1016)
        redis.pause()
        try:
            begun = time.monotonic()
            assert (await cwm.call("window_list", search="paused"))["windows"]
            with pytest.raises(ToolError) as refused:
                await cwm.call("window_freeze", session_id="filling", window_name="paused-2")
            assert refused.value.code in (5002, 6002) and time.monotonic() - begun < ANSWER_S
            heard = await talk.branch("erin-2", thawed["cache_salt"]).say(talk.cue(), logprobs=5)
        finally:
            redis.resume()
        assert heard.restored == full and heard.completion.token_ids == answer.completion.token_ids
        assert "paused-1" in await listed_again(cwm)


async def test_a_chunk_that_changed_in_redis_is_computed_again_and_the_tokens_are_right(shared: Shared) -> None:
    engine = shared.first
    talk, answer, _ = await told(engine, "frank", 950)
    async with mcp_client(engine) as cwm:
        frozen = await cwm.call("window_freeze", session_id="frank", window_name="bent-1")
        status = await cwm.call("window_status", window_name="bent-1", include_blocks=True)
    broken = status["blocks"][1]["hash"]
    client = shared.redis.client()
    for name in list(client.keys(f"*{broken}*chunk")):
        value = bytearray(bytes(client.get(name)))  # type: ignore[arg-type]
        value[len(value) // 2] ^= 1
        client.set(name, bytes(value))
    # The other engine has no copy of its own, neither in memory nor on disk.
    async with mcp_client(shared.second) as cwm:
        thawed = await cwm.call("window_thaw", window_name="bent-1", new_session_id="frank-2")
    assert thawed["partial"] and "CWM-4004" in thawed["warning"]
    assert 0 < thawed["restorable_tokens"] < frozen["captured_tokens"]
    assert thawed["restored_by_tier"] == {"redis": thawed["restorable_tokens"]}
    heard = await talk_of(shared.second, talk, "frank-2", thawed["cache_salt"]).say(talk.cue(), logprobs=5)
    assert heard.restored == thawed["restorable_tokens"]
    assert heard.completion.token_ids[:8] == answer.completion.token_ids[:8]
