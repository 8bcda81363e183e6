"""queries.py: what of a session the list tells."""

import asyncio
import threading
from pathlib import Path

import pytest

from cwm_connector.catalog.session_pages import SessionEvent, SessionRow
from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import Micros, now_micros
from cwm_connector.operations import dispatch
from cwm_connector.operations.queries import LIST_WAITS_S, _state
from cwm_connector.protocol.calls import ARGUMENTS, Op
from cwm_connector.sessions.index import EXPIRES_AFTER
from cwm_connector.sessions.views import SessionView
from tests.support.miniature import Miniature
from tests.support.vllm_parts import BLOCK_TOKENS


def view(last_active_at: int, running: bool = False, expired: bool = False) -> SessionView:
    return SessionView("alice", Micros(1), Micros(last_active_at), 9, ("h1",), running, "h1", expired=expired)


FROZEN = SessionRow("alice", "m", 9, SessionEvent.FROZEN, Micros(1), Micros(50))


@pytest.mark.parametrize(
    ("session", "row", "state"),
    [
        (view(10), None, "active"),
        (view(10, expired=True), None, "expired"),
        (view(10), FROZEN, "frozen"),
        (view(10, expired=True), FROZEN, "frozen"),
        (view(60, expired=True), FROZEN, "expired"),
        (view(10, running=True), FROZEN, "active"),
    ],
)
def test_a_session_s_state_is_its_latest_event(session: SessionView, row: SessionRow | None, state: str) -> None:
    assert _state(session, row) == state


def in_a_long_step(engine: Miniature) -> threading.Event:
    """The engine thread is in it when this returns, and until the event is set."""
    begun, over = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        over.wait(30)

    engine._do(step)
    assert begun.wait(10)
    return over


async def test_during_a_long_step_the_list_shows_the_last_known_sessions(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path / "home")
    await engine.serve(range(40), "alice")
    (known,) = (await engine.call(Op.SESSIONS))["sessions"]
    await engine.serve(range(50), "bob")
    first = in_a_long_step(engine)
    assert (await engine.call(Op.SESSIONS))["sessions"] == [{**known, "cached_tokens": None}]
    first.set()
    await engine.engine.on_engine_thread(lambda side: None)  # by now the list's own question is answered as well
    second = in_a_long_step(engine)
    later = (await engine.call(Op.SESSIONS))["sessions"]
    second.set()
    engine.close()
    assert [each["session_id"] for each in later] == ["bob", "alice"]


async def test_while_nobody_is_answered_the_list_waits_for_the_engine_s_step(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path / "home")
    await engine.serve(range(40), "alice")
    await engine.call(Op.SESSIONS)
    await engine.serve(range(50), "bob")
    release = threading.Timer(5 * LIST_WAITS_S, in_a_long_step(engine).set)
    release.start()
    listed = (await engine.call(Op.SESSIONS))["sessions"]
    release.join()
    engine.close()
    assert [each["session_id"] for each in listed] == ["bob", "alice"]


async def test_a_list_that_failed_is_made_again_by_the_next_call(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path / "home")
    await engine.serve(range(40), "alice")
    engine.scheduler._pool = None  # as before vLLM has bound it
    for _ in range(2):
        with pytest.raises(CWMError, match="still starting"):
            await engine.call(Op.SESSIONS)
    engine.scheduler.bind_pool(engine.pool)
    (session,) = (await engine.call(Op.SESSIONS))["sessions"]
    engine.close()
    assert session["session_id"] == "alice"


async def test_a_list_that_failed_after_nobody_waited_for_it_is_made_again(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path / "home")
    await engine.serve(range(40), "alice")
    await engine.call(Op.SESSIONS)
    engine.scheduler._pool = None
    step = in_a_long_step(engine)
    await engine.operations.call(Op.SESSIONS, ARGUMENTS[Op.SESSIONS](), lambda *_: None)
    step.set()
    await engine.engine.on_engine_thread(lambda side: None)
    engine.scheduler.bind_pool(engine.pool)
    (session,) = (await engine.call(Op.SESSIONS))["sessions"]
    engine.close()
    assert (session["session_id"], session["cached_tokens"]) == ("alice", 32)


async def test_the_list_shows_the_title_of_a_session(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path / "home")
    engine.scheduler._sessions._request_title = lambda tokens, tell: tell("What is this?")
    await engine.serve(range(40), "alice")
    listed = await engine.call(Op.SESSIONS)
    engine.close()
    (session,) = listed["sessions"]
    assert (session["title"], session["heads"], session["cached_tokens"]) == ("What is this?", 1, 32)


async def test_a_session_expires_without_a_request_and_without_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await Miniature.started(tmp_path / "home")
    await engine.serve(range(40), "alice")
    await engine.evict()
    index = engine.scheduler._sessions
    monkeypatch.setattr(index, "_clock", lambda: Micros(now_micros() + 2 * EXPIRES_AFTER))
    monkeypatch.setattr(dispatch, "EXPIRE_EVERY_S", 0.01)
    task = asyncio.create_task(engine.operations.expire_sessions())
    async with asyncio.timeout(20):
        while not index.views()[0].expired:
            await engine.engine.on_engine_thread(lambda side: None)
    task.cancel()
    engine.close()


async def test_the_heads_of_a_session_can_be_named_to_a_freeze(engine: Miniature) -> None:
    for head, start in (("a", 1000), ("b", 9000)):
        await engine.serve(range(start, start + 4 * BLOCK_TOKENS), f"proj/{head}")
    (listed,) = (await engine.call(Op.SESSIONS))["sessions"]
    assert (listed["session_id"], sorted(listed["head_names"])) == ("proj", ["a", "b"])
    assert (await engine.call(Op.FREEZE, session_id="proj/a", window_name="w"))["head"] == "a"
