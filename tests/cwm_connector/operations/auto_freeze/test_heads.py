"""freezer.py, coverage.py and retention.py: every head of a session is saved, once, and none holds up another."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cwm_connector import compat
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.auto_freeze import freezer
from cwm_connector.operations.auto_freeze.mark import Mark, Reason, mark_of
from cwm_connector.protocol.calls import Op
from cwm_connector.sessions.views import HeadSnapshot
from tests.support.miniature import Miniature
from tests.support.stores import CHUNK_TOKENS, text
from tests.support.vllm_parts import BLOCK_TOKENS, request

MAIN, AGENT = text(1, chunks=4), text(2, chunks=2)


async def windows(engine: Miniature) -> list[dict[str, Any]]:
    """Oldest first."""
    return list((await engine.call(Op.LIST, sort_order="asc", limit=100))["windows"])


async def saved(engine: Miniature) -> list[tuple[str, str, int]]:
    """The windows' sessions, heads and tokens, oldest first."""
    names = [each["name"] for each in await windows(engine)]
    rows = await engine.catalog.run(lambda catalog: [catalog.window(name) for name in names])
    return [(row.session_id, row.head, row.token_count) for row in rows]


async def two_heads(engine: Miniature, session: str = "alice") -> None:
    """A conversation, and a subagent that was active after it."""
    await engine.serve(MAIN, session)
    await engine.serve(AGENT, f"{session}/agent")


async def silent(engine: Miniature, **changes: Any) -> None:
    """As if every head had been idle for longer than the time-out, which is then as before."""
    await engine.call(Op.POLICY, idle_timeout_minutes=1e-9, **changes)
    await engine.operations.auto.tick()
    await engine.call(Op.POLICY, idle_timeout_minutes=30)


def counted(engine: Miniature) -> dict[tuple[str, str], float]:
    """Automatic freezes by reason and outcome, from the metrics."""
    samples = [each for each in engine.engine.metrics.samples() if each.name == "cwm_auto_freezes_total"]
    return {(each.labels["reason"], each.labels["outcome"]): each.value for each in samples}


def failing_for(engine: Miniature, monkeypatch: pytest.MonkeyPatch, session: str, problem: BaseException) -> None:
    """Let every snapshot of the session fail."""
    real = engine.scheduler.snapshot

    def snapshot(session_id: str, head: str | None) -> HeadSnapshot:
        if session_id == session:
            raise problem
        return real(session_id, head)

    monkeypatch.setattr(engine.scheduler, "snapshot", snapshot)


# --- every head ------------------------------------------------------------------------------------------------------


async def test_before_a_shutdown_every_head_is_frozen_and_conversations_come_first(engine: Miniature) -> None:
    await two_heads(engine)
    await two_heads(engine, "bob")
    await engine.operations.auto.freeze_before_shutdown()
    found = await saved(engine)
    assert found[:2] == [("bob", "h1", 128), ("alice", "h1", 128)]
    assert sorted(found[2:]) == [("alice", "agent", 64), ("bob", "agent", 64)]


async def test_a_session_whose_last_request_was_short_is_frozen(engine: Miniature) -> None:
    await engine.serve(MAIN, "alice")
    await engine.serve(text(2)[:BLOCK_TOKENS], "alice")
    await engine.operations.auto.freeze_before_shutdown()
    assert await saved(engine) == [("alice", "h1", 128)]


async def test_idle_heads_are_frozen_once_each_under_names_that_tell_them_apart(engine: Miniature) -> None:
    await two_heads(engine)
    await silent(engine, naming_pattern="{session_id}.x")
    await silent(engine)
    assert {each["name"] for each in await windows(engine)} == {"alice.x", "alice-agent.x"}


async def test_each_head_has_its_own_time_out(engine: Miniature) -> None:
    await engine.serve(MAIN, "alice")
    await silent(engine)
    await engine.serve(AGENT, "alice/agent")
    await engine.operations.auto.tick()
    assert await saved(engine) == [("alice", "h1", 128)]
    await silent(engine)
    assert await saved(engine) == [("alice", "h1", 128), ("alice", "agent", 64)]


async def test_each_head_has_its_own_threshold(engine: Miniature) -> None:
    await engine.call(Op.POLICY, token_threshold=96)
    await engine.serve(MAIN, "alice")
    await engine.serve(AGENT, "alice/agent")
    await engine.operations.auto.tick()
    assert await saved(engine) == [("alice", "h1", 128)]
    await engine.serve([*AGENT, *text(3, chunks=1)], "alice/agent")
    await engine.operations.auto.tick()
    await engine.operations.auto.tick()
    assert await saved(engine) == [("alice", "h1", 128), ("alice", "agent", 96)]


async def test_only_the_head_that_is_near_eviction_is_frozen(engine: Miniature) -> None:
    await two_heads(engine)
    last = request(AGENT).block_hashes[-1:]

    def evict() -> None:
        engine.pool.evict_blocks({block.block_id for block in compat.cached_blocks(engine.pool, last) if block})

    await engine.engine.on_engine_thread(lambda side: evict())
    await engine.operations.auto.tick()
    await engine.operations.auto.tick()
    assert await saved(engine) == [("alice", "agent", 64)]
    (window,) = await windows(engine)
    assert "partial, 32 of 64 tokens" in window["description"] and window["size_bytes"] > 0
    assert counted(engine) == {("eviction", "done"): 1}


async def test_with_the_policy_off_no_head_is_frozen(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    await two_heads(engine)
    await engine.operations.auto.tick()
    await engine.operations.auto.freeze_before_shutdown()
    assert await windows(engine) == []
    engine.close()


# --- what counts as frozen -------------------------------------------------------------------------------------------


async def test_a_turn_that_ends_during_a_freeze_is_frozen_later(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = [*MAIN, *text(3, chunks=1)]
    commit = engine.operations._freezer._window_commit.commit

    async def after_another_turn(*args: Any) -> Any:
        await engine.serve(longer, "alice")
        return await commit(*args)

    await engine.serve(MAIN, "alice")
    monkeypatch.setattr(engine.operations._freezer._window_commit, "commit", after_another_turn)
    await engine.call(Op.FREEZE, session_id="alice", window_name="by-hand")
    monkeypatch.undo()
    assert (await engine.call(Op.SESSIONS))["sessions"][0]["state"] == "active"
    await engine.operations.auto.freeze_before_shutdown()
    assert [tokens for _, _, tokens in await saved(engine)] == [128, 160]


async def test_a_freeze_of_one_head_by_hand_leaves_the_other_to_auto_freeze(engine: Miniature) -> None:
    await two_heads(engine)
    await engine.call(Op.FREEZE, session_id="alice", window_name="by-hand")
    await silent(engine)
    assert await saved(engine) == [("alice", "h1", 128), ("alice", "agent", 64)]


async def test_a_session_stays_frozen_when_only_another_head_speaks(engine: Miniature) -> None:
    await engine.serve(MAIN, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="by-hand")
    await engine.serve(AGENT, "alice/agent")
    (session,) = (await engine.call(Op.SESSIONS))["sessions"]
    assert (session["state"], session["head"], session["auto_freeze_at"]) == ("frozen", "h1", None)


async def test_after_a_restart_nothing_is_frozen_twice(tmp_path: Path) -> None:
    for _ in range(3):
        engine = await Miniature.started(tmp_path, auto_freeze_enabled=True)
        await two_heads(engine)
        await silent(engine)
        await engine.operations.auto.freeze_before_shutdown()
        assert sorted(await saved(engine)) == [("alice", "agent", 64), ("alice", "h1", 128)]
        engine.close()


async def test_after_a_restart_what_is_new_is_frozen(tmp_path: Path) -> None:
    longer = MAIN
    for turn in range(3):
        longer = [*longer, *text(10 + turn, chunks=1)[:20]]
        engine = await Miniature.started(tmp_path, auto_freeze_enabled=True)
        await engine.serve(longer, "alice")
        await silent(engine)
        await silent(engine)
        assert [tokens for _, _, tokens in await saved(engine)] == [128 + 20 * (done + 1) for done in range(turn + 1)]
        engine.close()


async def test_after_a_restart_a_partial_window_counts_only_as_far_as_it_restores(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, auto_freeze_enabled=True)
    await engine.serve(MAIN, "alice")
    lost = request(MAIN).block_hashes[2:]

    def evict() -> None:
        engine.pool.evict_blocks({block.block_id for block in compat.cached_blocks(engine.pool, lost) if block})

    await engine.engine.on_engine_thread(lambda side: evict())
    await engine.operations.auto.tick()
    engine.close()
    engine = await Miniature.started(tmp_path, auto_freeze_enabled=True)
    await engine.serve(MAIN, "alice")
    await silent(engine)
    restorable = [
        (await engine.call(Op.THAW, window_name=each["name"]))["restorable_tokens"] for each in await windows(engine)
    ]
    assert restorable == [CHUNK_TOKENS, len(MAIN)]
    engine.close()


async def test_what_a_partial_window_lacks_is_frozen_once_it_was_computed_again(engine: Miniature) -> None:
    await engine.serve(MAIN, "alice")
    lost = request(MAIN).block_hashes[2:]

    def evict() -> None:
        engine.pool.evict_blocks({block.block_id for block in compat.cached_blocks(engine.pool, lost) if block})

    await engine.engine.on_engine_thread(lambda side: evict())
    await engine.operations.auto.tick()
    assert (await engine.call(Op.SESSIONS))["sessions"][0]["state"] == "active"
    await engine.serve(MAIN, "alice")
    await silent(engine)
    names = [each["name"] for each in await windows(engine)]
    restorable = [(await engine.call(Op.THAW, window_name=name))["restorable_tokens"] for name in names]
    assert restorable == [CHUNK_TOKENS, len(MAIN)]


async def test_another_session_s_window_does_not_count(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, auto_freeze_enabled=True)
    await engine.serve(text(5), "alice")
    await silent(engine)
    await engine.serve(MAIN, "bob")
    await silent(engine)
    engine.close()
    engine = await Miniature.started(tmp_path, auto_freeze_enabled=True)
    await engine.serve(MAIN, "alice")
    await silent(engine)
    assert await saved(engine) == [("alice", "h1", 96), ("bob", "h1", 128), ("alice", "h1", 128)]
    engine.close()


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [RuntimeError("s3cret"), StopIteration(), CWMError(Code.INTERNAL, "odd")])
async def test_a_head_that_fails_in_any_way_stops_no_other(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, problem: Exception
) -> None:
    for session in ("before", "broken", "after"):
        await two_heads(engine, session)
    failing_for(engine, monkeypatch, "broken", problem)
    await silent(engine)
    assert {session for session, _, _ in await saved(engine)} == {"before", "after"}
    assert len(await saved(engine)) == 4 and "s3cret" not in caplog.text
    await engine.operations.auto.freeze_before_shutdown()
    assert len(await saved(engine)) == 4
    assert sum(count for (_, outcome), count in counted(engine).items() if outcome != "done") == 4
    monkeypatch.undo()
    await silent(engine)  # not before its time
    assert len(await saved(engine)) == 4
    engine.operations.auto._not_before.clear()
    await silent(engine)
    assert {("broken", "h1", 128), ("broken", "agent", 64)} < set(await saved(engine))


async def test_a_shutdown_that_runs_out_of_time_says_how_many_heads_are_left(
    engine: Miniature, caplog: pytest.LogCaptureFixture
) -> None:
    await two_heads(engine)
    async with engine.engine.chunk_lock:
        await engine.operations.auto.freeze_before_shutdown(limit_s=0.5)
    assert "2 of the heads" in caplog.text and await windows(engine) == []


async def test_a_round_under_way_and_a_shutdown_freeze_each_head_once(engine: Miniature) -> None:
    for session in ("alice", "bob", "carol"):
        await two_heads(engine, session)
    await engine.call(Op.POLICY, idle_timeout_minutes=1e-9)
    await asyncio.gather(engine.operations.auto.tick(), engine.operations.finish_before_shutdown())
    assert len(await saved(engine)) == len(set(await saved(engine))) == 6


async def test_a_freeze_by_hand_during_a_round_is_not_repeated_by_it(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_heads(engine)
    listed = await engine.operations.auto._freezable()
    await engine.call(Op.FREEZE, session_id="alice", window_name="by-hand")
    for head in listed:
        await engine.operations.auto._freeze_unless_covered(head, Reason.IDLE)
    assert await saved(engine) == [("alice", "h1", 128), ("alice", "agent", 64)]


# --- what is kept and told -------------------------------------------------------------------------------------------


async def test_each_head_keeps_its_own_newest_windows(engine: Miniature) -> None:
    await engine.call(Op.POLICY, keep_last=1)
    await engine.serve(MAIN, "alice")
    await silent(engine)
    for turn in range(2, 5):
        await engine.serve(text(2, chunks=turn), "alice/agent")
        await silent(engine)
    assert await saved(engine) == [("alice", "h1", 128), ("alice", "agent", 128)]


async def test_a_hook_s_windows_are_pruned_for_the_head_that_it_froze(engine: Miniature) -> None:
    await engine.call(Op.POLICY, keep_last=1)
    await two_heads(engine)
    for number, head in enumerate([None, "agent", None]):
        description = Mark(Reason.COMPACTION, number + 1).described("before a compaction")
        await engine.call(
            Op.FREEZE,
            session_id="alice",
            window_name=f"c{number}",
            description=description,
            tags=["auto"],
            head=head,
        )
    assert [each["name"] for each in await windows(engine)] == ["c1", "c2"]


async def test_the_next_action_names_a_head_that_is_not_the_default(engine: Miniature) -> None:
    await two_heads(engine)
    first = (await engine.call(Op.POLICY))["next_action"]
    assert (first["session_id"], first.get("head")) == ("alice", None)
    await engine.call(Op.FREEZE, session_id="alice", window_name="by-hand")
    after = (await engine.call(Op.POLICY))["next_action"]
    assert (after["session_id"], after["head"], after["reason"]) == ("alice", "agent", "idle")


async def test_the_index_is_told_whether_to_protect_what_is_unfrozen(engine: Miniature) -> None:
    def protects(side: Any) -> bool:
        return bool(side._sessions._protects_unfrozen)

    assert await engine.engine.on_engine_thread(protects)
    await engine.call(Op.POLICY, enabled=False)
    assert not await engine.engine.on_engine_thread(protects)


async def test_marks_count_the_session_s_automatic_windows(engine: Miniature) -> None:
    await two_heads(engine)
    await silent(engine)
    marks = [mark_of(each["description"], each["tags"]) for each in await windows(engine)]
    assert marks == [Mark(Reason.IDLE, 1), Mark(Reason.IDLE, 2)]
    assert freezer.SHUTDOWN_LIMIT_S < 20
