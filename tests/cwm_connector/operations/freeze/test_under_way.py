"""under_way.py: what is known of a freeze that is not done yet, of one that failed, and who waits for them."""

import asyncio
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.freeze.under_way import FAILURES_KEPT, FreezesUnderWay, Stage
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import frozen, text


async def status(engine: Miniature, name: str) -> dict[str, Any]:
    return await engine.call(Op.STATUS, window_name=name)


async def refused(call: Any) -> CWMError:
    with pytest.raises(CWMError) as caught:
        await call
    return caught.value


async def waiting_freeze(engine: Miniature, name: str) -> "asyncio.Task[dict[str, Any]]":
    """Begin a freeze that waits for the lock that the test holds."""
    freezing = asyncio.create_task(engine.call(Op.FREEZE, session_id="s", window_name=name))
    while engine.engine.freezes.status(name, "small") is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return freezing


async def test_a_window_that_is_being_frozen_has_a_status_and_is_in_no_list(engine: Miniature) -> None:
    await engine.serve(text(1), "s")
    async with engine.engine.chunk_lock:
        freezing = await waiting_freeze(engine, "w")
        told = await status(engine, "w")
        assert (told["state"], told["id"], told["type"]) == ("freezing", "w", "window")
        assert told["progress"]["stage"] == Stage.WAITING and told["progress"]["total"] is None
        assert told["token_count"] is None and told["progress"]["started_at"].endswith("Z")
        assert (await engine.call(Op.LIST))["windows"] == []
    await freezing
    told = await status(engine, "w")
    assert (told["state"], told["token_count"]) == ("frozen", 96) and "progress" not in told


async def test_the_status_follows_the_freeze_s_progress(engine: Miniature) -> None:
    await engine.serve(text(1), "s")
    seen: list[tuple[str, int, int, int]] = []

    def look(*_: object) -> None:
        told = engine.engine.freezes.status("w", "small")
        assert told is not None and told.progress is not None and told.token_count is not None
        seen.append((told.progress.stage, told.progress.done, told.progress.total or 0, told.token_count))

    await engine.call(Op.FREEZE, look, session_id="s", window_name="w")
    assert (Stage.STORING, 0, 3, 96) in seen and seen[-1] == (Stage.STORING, 3, 3, 96)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (Op.FREEZE, {"session_id": "s", "window_name": "w"}),
        (Op.CLONE, {"source_window": "other", "target_window": "w"}),
    ],
)
async def test_the_name_of_a_freeze_under_way_is_taken(engine: Miniature, op: Op, args: dict[str, Any]) -> None:
    await frozen(engine, "other", text(2))
    await engine.serve(text(1), "s")
    async with engine.engine.chunk_lock:
        freezing = await waiting_freeze(engine, "w")
        problem = await refused(engine.call(op, **args))
        assert problem.code is Code.WINDOW_EXISTS and "window_status" in problem.message
    assert (await freezing)["window_name"] == "w"


async def test_a_refused_second_freeze_of_a_window_leaves_its_status_alone(engine: Miniature) -> None:
    await frozen(engine, "s", text(1))
    await refused(engine.call(Op.FREEZE, session_id="s", window_name="s"))
    assert (await status(engine, "s"))["state"] == "frozen"
    await engine.call(Op.DELETE, window_name="s")
    assert "freeze failed" not in (await refused(status(engine, "s"))).message


async def test_after_a_failure_the_status_says_why_until_the_name_is_used_again(engine: Miniature) -> None:
    await refused(engine.call(Op.FREEZE, session_id="nobody", window_name="w"))
    problem = await refused(status(engine, "w"))
    assert problem.code is Code.WINDOW_NOT_FOUND
    assert "its freeze failed: CWM-2001" in problem.message
    await engine.serve(text(1), "s")
    await engine.call(Op.FREEZE, session_id="s", window_name="w")
    assert (await status(engine, "w"))["state"] == "frozen"
    await engine.call(Op.DELETE, window_name="w")
    assert "freeze failed" not in (await refused(status(engine, "w"))).message


async def test_a_cancelled_freeze_is_said_to_be_so(engine: Miniature) -> None:
    await engine.serve(text(1), "s")
    async with engine.engine.chunk_lock:
        freezing = await waiting_freeze(engine, "w")
        freezing.cancel()
        await asyncio.wait({freezing})
    assert "its freeze failed: CWM-6002: it was cancelled" in (await refused(status(engine, "w"))).message


def test_an_unexpected_failure_is_named_by_its_kind_alone() -> None:
    freezes = FreezesUnderWay()
    with pytest.raises(RuntimeError), freezes.begin("w", lambda *_: None):
        raise RuntimeError("s3cret")
    assert freezes.failure("w") == "CWM-9001: it failed with RuntimeError; see the engine's log"


def test_a_name_is_used_by_one_freeze_at_a_time() -> None:
    freezes = FreezesUnderWay()
    with freezes.begin("w", lambda *_: None):
        with pytest.raises(CWMError) as caught, freezes.begin("w", lambda *_: None):
            pass
        assert caught.value.code is Code.WINDOW_EXISTS and freezes.status("w", "small") is not None
    assert freezes.status("w", "small") is None


def test_a_freeze_that_finds_its_name_taken_is_no_failure_of_the_window() -> None:
    freezes = FreezesUnderWay()
    with pytest.raises(CWMError), freezes.begin("w", lambda *_: None):
        raise CWMError(Code.WINDOW_EXISTS, "another engine has just committed it")
    assert freezes.failure("w") is None


def test_only_the_newest_failures_are_kept() -> None:
    freezes = FreezesUnderWay()
    for number in range(FAILURES_KEPT + 1):
        with pytest.raises(RuntimeError), freezes.begin(f"w{number}", lambda *_: None):
            raise RuntimeError
    assert freezes.failure("w0") is None and freezes.failure("w1") and freezes.failure(f"w{FAILURES_KEPT}")


async def test_before_a_shutdown_the_freezes_under_way_are_completed(engine: Miniature) -> None:
    await engine.serve(text(1), "s")
    async with engine.engine.chunk_lock:
        freezing = [await waiting_freeze(engine, name) for name in ("v", "w")]
        ending = asyncio.create_task(engine.operations.finish_before_shutdown())
        await asyncio.sleep(0)
        assert not ending.done()
    await ending
    assert all(each.done() for each in freezing)
    assert {each["name"] for each in (await engine.call(Op.LIST))["windows"]} == {"v", "w"}


async def test_a_freeze_that_takes_too_long_does_not_keep_the_engine_from_its_end(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cwm_connector.operations.dispatch.SHUTDOWN_LIMIT_S", 0.01)
    await engine.serve(text(1), "s")
    async with engine.engine.chunk_lock:
        freezing = await waiting_freeze(engine, "w")
        await engine.operations.finish_before_shutdown()
        assert "not every freeze could be completed" in caplog.text
    await freezing
