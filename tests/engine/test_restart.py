"""What is left after kill -9 of every vLLM process: the windows, whole, and the tokens they would have led to.

`prepare` does all that the tests look at, kills the engine, and lets an engine with other weights try the store.
"""

import asyncio
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Measured
from tests.support.chunks import chunk_files, flip_a_byte
from tests.support.engine import Engine
from tests.support.mcp_client import ToolError, Tools, mcp_client
from tests.support.talk import WORDS, Talk, assert_equal_where_sure, talked


@dataclass(frozen=True, slots=True)
class Told:
    """A frozen session and what the uninterrupted engine answered to the next question, from its own prefix cache."""

    prompt: list[int]
    full_blocks: int
    answer: Measured
    frozen: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Survived:
    told: dict[str, Told]
    cut_off: Talk
    refusal: ToolError | None
    """What the engine with other weights answered to a thaw."""


async def tell(engine: Engine, cwm: Tools, name: str, seed: int) -> Told:
    talk = await talked(engine.api, f"session-{name}", seed, tokens=504)
    frozen = await cwm.call("window_freeze", session_id=talk.session_id, window_name=name)
    uninterrupted = talk.branch(talk.session_id)
    answer = await uninterrupted.say(talk.cue(), logprobs=5)
    full_blocks = talk.full_blocks(await engine.api.block_tokens())
    assert answer.local_hits == full_blocks, "the reference is no prefix hit of the whole session"
    return Told(uninterrupted.ids[:-WORDS], full_blocks, answer, frozen)


async def prepare(engine: Engine) -> Survived:
    told, cut_off, files = await freeze_until_killed(engine)
    for chunks in files:
        # The second chunk of the window, far behind the header: the first one stays good.
        flip_a_byte(chunks[1], at=20_000)
    # The same model but for one bit of one weight.
    other_model = engine.folder / "other-model"
    shutil.copytree(engine.options.model, other_model)
    flip_a_byte(other_model / "model.safetensors", at=-1)
    options = replace(engine.options, model=other_model, home=engine.home)
    with Engine(options, engine.launch) as stranger:
        refusal = await thaw_refused(stranger)
    shutil.rmtree(other_model)
    return Survived(told, cut_off, refusal)


pytestmark = pytest.mark.survives(prepare=prepare, kills=True)


async def freeze_until_killed(engine: Engine) -> tuple[dict[str, Told], Talk, list[list[Path]]]:
    names = ("kept", "by-session", "private", "broken-seen", "broken-late")
    async with mcp_client(engine) as cwm:
        told = {name: await tell(engine, cwm, name, seed) for seed, name in enumerate(names, start=100)}
        files = []
        for name in ("broken-seen", "broken-late"):
            status = await cwm.call("window_status", window_name=name, include_blocks=True)
            files.append([path for block in status["blocks"] for path in chunk_files(engine.home, block["hash"])])
        cut_off = await talked(engine.api, "session-cut-off", 150, tokens=1016)
        freezing = asyncio.create_task(cwm.call("window_freeze", session_id=cut_off.session_id, window_name="cut-off"))
        await asyncio.wait({freezing}, timeout=0.1)
        engine.kill_hard()
        await asyncio.wait({freezing}, timeout=30)
    return told, cut_off, files


async def thaw_refused(engine: Engine) -> ToolError | None:
    async with mcp_client(engine) as cwm:
        try:
            await cwm.call("window_thaw", window_name="kept")
        except ToolError as refusal:
            return refusal
    return None


async def test_a_thawed_session_goes_on_with_the_uninterrupted_tokens(engine: Engine, before: Survived) -> None:
    told = before.told["kept"]
    async with mcp_client(engine) as cwm:
        thawed = await cwm.call("window_thaw", window_name="kept", new_session_id="kept-again")
    assert not thawed["partial"], thawed["warning"]
    assert thawed["restorable_tokens"] >= told.full_blocks
    heard = await engine.api.measure(
        told.prompt, WORDS, session_id="kept-again", cache_salt=thawed["cache_salt"], logprobs=5
    )
    assert heard.restored >= told.full_blocks, "by vLLM's external prefix cache counter"
    assert heard.completion.cached_tokens >= told.full_blocks, "by vLLM's usage"
    assert heard.local_hits == 0
    assert heard.completion.token_ids == told.answer.completion.token_ids
    assert heard.completion.top_logprobs == told.answer.completion.top_logprobs, "not bit-identical to a prefix hit"


async def test_the_session_id_alone_restores_as_well(engine: Engine, before: Survived) -> None:
    told = before.told["by-session"]
    async with mcp_client(engine) as cwm:
        thawed = await cwm.call("window_thaw", window_name="by-session")
    assert thawed["session_id"] == "session-by-session", "thawed back into its own session"
    heard = await engine.api.measure(told.prompt, WORDS, session_id=thawed["session_id"], logprobs=5)
    assert heard.restored >= told.full_blocks
    assert heard.completion.token_ids == told.answer.completion.token_ids


async def test_nobody_else_restores_a_window(engine: Engine, before: Survived) -> None:
    told, other = before.told["private"], before.told["kept"]
    async with mcp_client(engine) as cwm:
        first = await cwm.call("window_thaw", window_name="private", new_session_id="reader-1")
        second = await cwm.call("window_thaw", window_name="private", new_session_id="reader-2")
    assert first["cache_salt"] != second["cache_salt"]

    strangers: list[dict[str, Any]] = [
        {"session_id": "stranger"},
        {"session_id": "stranger", "cache_salt": "guessed"},
        {"cache_salt": first["cache_salt"][:-1]},
        {"cache_salt": first["cache_salt"].swapcase()},
        {"cache_salt": "reader-1"},
    ]
    for stranger in strangers:
        heard = await engine.api.measure(told.prompt, 1, **stranger)
        assert (heard.restored, heard.completion.cached_tokens) == (0, 0), stranger

    for reader in (first, second):
        wrong_text = await engine.api.measure(other.prompt, 1, cache_salt=reader["cache_salt"])
        assert wrong_text.restored == 0, "a salt opens the window it was given for, and no other"
        heard = await engine.api.measure(told.prompt, 1, cache_salt=reader["cache_salt"])
        assert heard.restored >= told.full_blocks


async def test_a_flipped_byte_on_disk_is_reported_and_recomputed(engine: Engine, before: Survived) -> None:
    told = before.told["broken-seen"]
    async with mcp_client(engine) as cwm:
        thawed = await cwm.call("window_thaw", window_name="broken-seen", new_session_id="seen-again")
    assert thawed["partial"]
    assert thawed["warning"]
    assert 0 < thawed["restorable_tokens"] < told.full_blocks, "what stands before the broken chunk is good"
    heard = await engine.api.measure(told.prompt, WORDS, cache_salt=thawed["cache_salt"])
    assert heard.restored == thawed["restorable_tokens"]
    assert_equal_where_sure(heard.completion, told.answer.completion)


async def test_a_flipped_byte_found_during_a_load_never_changes_a_token(engine: Engine, before: Survived) -> None:
    told = before.told["broken-late"]
    async with mcp_client(engine) as cwm:
        unread = await cwm.call("window_thaw", window_name="broken-late", new_session_id="late-again", prewarm=False)
        heard = await engine.api.measure(told.prompt, WORDS, cache_salt=unread["cache_salt"])
        assert_equal_where_sure(heard.completion, told.answer.completion)
        verified = await cwm.call("window_thaw", window_name="broken-late", new_session_id="late-again")
    assert verified["partial"]


async def test_a_freeze_cut_off_by_the_kill_is_whole_or_absent(engine: Engine, before: Survived) -> None:
    talk = before.cut_off
    async with mcp_client(engine) as cwm:
        try:
            thawed = await cwm.call("window_thaw", window_name="cut-off")
        except ToolError as absent:
            assert absent.code == 2002
        else:
            assert not thawed["partial"]
            assert thawed["restorable_tokens"] == talk.full_blocks(await engine.api.block_tokens())


async def test_every_acknowledged_window_is_listed_unchanged(engine: Engine, before: Survived) -> None:
    async with mcp_client(engine) as cwm:
        page = await cwm.call("window_list", limit=100)
        listed = {item["name"]: item for item in page["windows"]}
        while page["has_more"]:  # an answer has at most 10 kB
            page = await cwm.call("window_list", limit=100, offset=len(listed))
            listed |= {item["name"]: item for item in page["windows"]}
    for name, told in before.told.items():
        assert listed[name]["token_count"] == told.frozen["token_count"]
        assert listed[name]["size_bytes"] == told.frozen["total_size_bytes"]


def test_a_window_of_other_weights_is_refused_with_the_field_that_differs(before: Survived) -> None:
    refusal = before.refusal
    assert refusal is not None, "an engine with other weights thawed the window"
    assert refusal.code == 5003
    assert "weights" in refusal.message
    assert refusal.text.startswith("CWM-5003: ")
