"""finder.py over a real catalog and vLLM's block pool: what a request loads although nobody has thawed it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.identity import Passport
from cwm_connector.protocol.calls import Op
from cwm_connector.step import window_matches
from tests.support.miniature import Miniature, chunk_files
from tests.support.redis_server import RedisServer
from tests.support.surveys import everything
from tests.support.vllm_parts import BLOCK_TOKENS

CHUNK = 2 * BLOCK_TOKENS
TEXT = list(range(1000, 1000 + 9 * BLOCK_TOKENS))  # four chunks and one block
OTHER = list(range(5000, 5000 + 9 * BLOCK_TOKENS))

Start = Callable[..., Coroutine[Any, Any, Miniature]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start an engine over one home. The engine before it is closed."""
    running: list[Miniature] = []

    async def started(**more: Any) -> Miniature:
        while running:
            running.pop().close()
        running.append(await Miniature.started(tmp_path, **more))
        return running[-1]

    yield started
    for one in running:
        one.close()


async def froze(engine: Miniature, name: str, text: Iterable[int], session: str | None = None, **more: Any) -> str:
    """Serve the text, freeze it and return the session's id. In a session with an id it is a head of its own."""
    if session is None:
        await engine.serve(text, **more)
        session = everything(engine.scheduler.session_views())[0][0].session_id
        await engine.call(Op.FREEZE, session_id=session, window_name=name)
    else:
        await engine.serve(text, f"{session}/{name}", **more)
        await engine.call(Op.FREEZE, session_id=session, window_name=name, head=name)
    return session


async def auto_thaws(engine: Miniature) -> float:
    metrics = (await engine.call(Op.METRICS))["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == "cwm_auto_thaws_total"))


async def test_after_a_restart_a_session_goes_on_without_a_call(start: Start) -> None:
    await froze(await start(), "w", TEXT, "alice")
    engine = await start()
    assert await engine.resume([*TEXT, 1, 2, 3], "alice") == len(TEXT)
    assert await auto_thaws(engine) == 1
    assert await engine.resume([*TEXT, 1, 2, 3], "alice/agent") == len(TEXT)


async def test_of_several_windows_the_one_with_most_in_common_is_loaded(start: Start) -> None:
    engine = await start()
    await froze(engine, "short", TEXT[: 2 * CHUNK], "alice")
    await froze(engine, "long", TEXT, "alice")
    await froze(engine, "branch", [*TEXT[:CHUNK], *OTHER], "alice")
    engine = await start()
    assert await engine.resume([*TEXT, 1], "alice") == len(TEXT)
    assert await engine.resume([*TEXT[:CHUNK], *OTHER], "alice") == CHUNK + len(OTHER)
    await engine.call(Op.DELETE, window_name="long")
    assert await engine.resume([*TEXT, 1], "alice") == 2 * CHUNK
    await engine.call(Op.DELETE, window_name="short")
    assert await engine.resume([*TEXT, 1], "alice") == CHUNK


async def test_a_session_loads_up_to_the_block_where_it_branches(start: Start) -> None:
    await froze(await start(), "w", TEXT, "alice")
    engine = await start()
    for blocks in (2, 3, 5, 8):
        assert await engine.resume([*TEXT[: blocks * BLOCK_TOKENS], *OTHER], "alice") == blocks * BLOCK_TOKENS
    assert await engine.resume([*TEXT[:BLOCK_TOKENS], *OTHER], "alice") == 0  # less than a chunk


async def test_a_window_shorter_than_a_chunk_is_found(start: Start) -> None:
    await froze(await start(), "w", TEXT[:BLOCK_TOKENS], "alice")
    engine = await start()
    assert await engine.resume(TEXT, "alice") == BLOCK_TOKENS


@pytest.mark.parametrize("session", [None, "bob", "alice:resumed", "no id!"])
async def test_a_conversation_that_goes_on_under_another_id_or_none_loads(start: Start, session: str | None) -> None:
    await froze(await start(), "w", TEXT, "alice")
    engine = await start()
    assert await engine.resume([*TEXT, 1, 2], session) == len(TEXT)
    assert await engine.resume([*TEXT[:112], *OTHER], session) == 112  # seven of nine blocks
    assert await engine.resume([*TEXT[:96], *OTHER], session) == 0  # six of nine


async def test_a_shared_system_prompt_alone_loads_nobody_s_conversation(start: Start) -> None:
    engine = await start()
    system = TEXT[: 2 * CHUNK]
    for number in range(12):
        await froze(engine, f"w{number}", [*system, *range(9000 + 500 * number, 9400 + 500 * number)], f"s{number}")
    engine = await start()
    for session in (None, "new"):
        assert await engine.resume([*system, *OTHER], session) == 0
    assert await engine.resume([*system, *OTHER], "s3") == len(system)  # its own window


async def test_a_shorter_window_is_continued_although_a_longer_one_has_more_in_common(start: Start) -> None:
    engine = await start()
    long = [*TEXT[:128], *range(20_000, 20_000 + 20 * CHUNK)]
    await froze(engine, "short", [*TEXT[:96], *OTHER[:BLOCK_TOKENS]], "alice")  # six of its seven blocks in common
    await froze(engine, "long", long, "bob")
    engine = await start()
    assert await engine.resume([*TEXT[:128], *range(7000, 7100)]) == 96


async def test_an_anonymous_conversation_keeps_its_session(start: Start) -> None:
    session = await froze(await start(), "w", TEXT)
    assert session.startswith("anon-")
    engine = await start()
    await engine.serve([*TEXT, 1, 2, 3])
    await engine.serve(OTHER)
    views = [view.session_id for view, _ in everything(engine.scheduler.session_views())]
    assert len(views) == 2 and session in views


async def test_prefix_shares_whole_blocks_with_everybody(start: Start) -> None:
    await froze(await start(), "w", TEXT, "alice")
    engine = await start(auto_thaw="prefix")
    for session in (None, "bob", "alice"):
        assert await engine.resume([*TEXT[:48], *OTHER], session) == 48
    assert await engine.resume([*TEXT[:48], *OTHER], "bob", "a salt") == 0


async def test_off_loads_what_was_thawed_and_nothing_else(start: Start) -> None:
    await froze(await start(), "w", TEXT, "alice")
    engine = await start(auto_thaw="off")
    assert [await engine.resume(TEXT, session) for session in (None, "alice", "bob")] == [0, 0, 0]
    assert engine.asked_again <= {"resume-1"}  # an anonymous request may belong to a session with a thaw
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    engine = await start(auto_thaw="off")
    assert [await engine.resume(TEXT, session) for session in (None, "alice", "bob")] == [0, 0, len(TEXT)]


async def test_requests_that_no_window_can_help_never_wait(start: Start) -> None:
    engine = await start()
    await froze(engine, "w", TEXT, "alice")
    await froze(engine, "private", OTHER, "alice", salt="s")
    engine = await start()
    for text in (OTHER, TEXT[: BLOCK_TOKENS - 2], TEXT[: CHUNK - 4], range(50)):
        for session in (None, "alice", "bob"):
            assert await engine.resume(text, session) == 0
    assert await engine.resume(TEXT, "alice", "a salt") == 0
    assert await engine.resume(OTHER, "alice", "s") == 0  # not even with the salt: nobody has thawed it
    assert engine.asked_again == set()


async def test_a_window_of_another_model_is_not_loaded(start: Start) -> None:
    await froze(await start(), "w", TEXT, "alice")
    engine = await start(passport=Passport({"weights": "large", "format": "1"}))
    assert await engine.resume(TEXT, "alice") == 0


async def test_a_damaged_chunk_is_computed_again(start: Start) -> None:
    engine = await start()
    await froze(engine, "w", TEXT, "alice")
    blocks = (await engine.call(Op.STATUS, window_name="w", include_blocks=True))["blocks"]
    engine = await start()
    (path,) = [path for path in chunk_files(engine.settings.home) if blocks[2]["hash"] in path.name]
    data = bytearray(path.read_bytes())
    data[5000] ^= 8
    path.write_bytes(data)
    assert await engine.resume([*TEXT, 1], "alice") == 2 * CHUNK
    assert await engine.resume([*TEXT, 1], "alice") == 2 * CHUNK


async def test_a_busy_catalog_holds_no_request_up_for_long(start: Start) -> None:
    await froze(await start(), "w", TEXT, "alice")
    engine = await start()
    busy = threading.Event()
    working = asyncio.ensure_future(engine.catalog.run(lambda catalog: busy.wait(10)))
    assert await engine.resume(TEXT, "alice") == 0
    assert engine.asked_again == {"resume-1"}
    busy.set()
    await working
    assert await engine.resume(TEXT, "alice") == len(TEXT)


async def test_a_catalog_that_fails_means_computing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    await froze(await start(), "w", TEXT, "alice")
    engine = await start()
    catalog = await engine.catalog.run(lambda catalog: catalog)

    def fails(*_: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "is_open", fails)
        assert await engine.resume(TEXT, "alice") == 0
    assert await engine.resume(TEXT, "alice") == len(TEXT)


async def test_a_request_that_gave_up_waiting_leaves_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    await froze(await start(), "w", TEXT)
    engine = await start()
    monkeypatch.setattr(window_matches, "ANSWER_LIMIT_S", 0.0)
    matches = engine.scheduler.window_matches
    for session in (None, "alice"):
        await engine.resume(TEXT, session)
    assert (matches._waiting, matches._common, matches._continued) == ({}, {}, {})
    assert not engine.scheduler._unassigned


async def test_after_a_reset_of_all_caches_only_newer_windows_load(start: Start) -> None:
    engine = await start()
    await froze(engine, "old", TEXT, "alice")
    assert await engine.resume(TEXT, "alice") == len(TEXT)
    engine.parts.thaw_bindings.clear()
    assert await engine.resume(TEXT, "alice") == 0
    await froze(engine, "new", OTHER, "alice")
    assert await engine.resume(OTHER, "alice") == len(OTHER)
    await engine.call(Op.THAW, window_name="old")
    assert await engine.resume(TEXT, "alice") == len(TEXT)


async def test_two_engines_with_one_catalog_serve_each_other_s_conversations(
    tmp_path: Path, server: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        one, other = [
            await Miniature.started(tmp_path / name, redis_url=server.url, catalog="redis") for name in ("a", "b")
        ]
        stack.callback(one.close)
        stack.callback(other.close)
        await froze(one, "w", TEXT, "alice")
        await froze(one, "private", OTHER, "alice", salt="s")
        await other.parts.shared_catalog_sync.follow(other.engine, other.operations.tiering)
        assert await other.resume([*TEXT, 1], "alice") == len(TEXT)
        assert await other.resume([*OTHER, 1], "alice") == 0
        await one.call(Op.DELETE, window_name="w")
        await other.parts.shared_catalog_sync.follow(other.engine, other.operations.tiering)
        assert await other.resume([*TEXT, 1], "alice") == 0
