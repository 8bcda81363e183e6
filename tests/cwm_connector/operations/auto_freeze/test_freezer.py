"""freezer.py and retention.py, in an engine in miniature: what is frozen by itself, when, and what goes again."""

from pathlib import Path
from typing import Any

import pytest

from cwm_connector import compat
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros
from cwm_connector.core.units import GIB
from cwm_connector.operations.auto_freeze.freezer import QUIET_TICKS
from cwm_connector.operations.auto_freeze.mark import Mark, Reason, mark_of
from cwm_connector.operations.auto_freeze.policy import Policy
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import CHUNK_BYTES, text
from tests.support.vllm_parts import BLOCK_TOKENS, request


async def windows(engine: Miniature) -> list[dict[str, Any]]:
    """Oldest first."""
    return list((await engine.call(Op.LIST, sort_order="asc"))["windows"])


async def names(engine: Miniature) -> list[str]:
    return [each["name"] for each in await windows(engine)]


async def policy(engine: Miniature, **changes: Any) -> dict[str, Any]:
    return await engine.call(Op.POLICY, **changes)


async def silent(engine: Miniature, **changes: Any) -> None:
    """As if every session had been idle for longer than the time-out, which is then as before."""
    await policy(engine, idle_timeout_minutes=1e-9, **changes)
    await engine.operations.auto.tick()
    await policy(engine, idle_timeout_minutes=30)


async def lose(engine: Miniature, token_ids: list[int], from_block: int) -> None:
    """Other work takes the session's blocks from this one on."""
    hashes = request(token_ids).block_hashes[from_block:]

    def evict() -> None:
        blocks = compat.cached_blocks(engine.pool, hashes)
        engine.pool.evict_blocks({block.block_id for block in blocks if block is not None})

    await engine.engine.on_engine_thread(lambda side: evict())


def counted(engine: Miniature) -> dict[tuple[str, str], float]:
    """Automatic freezes by reason and outcome, from the metrics."""
    samples = [each for each in engine.engine.metrics.samples() if each.name == "cwm_auto_freezes_total"]
    return {(each.labels["reason"], each.labels["outcome"]): each.value for each in samples}


# --- when ---


async def test_no_session_is_frozen_automatically_unless_it_is_switched_on(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, auto_freeze_idle_timeout_minutes=1e-9, auto_freeze_token_threshold=1)
    await engine.serve(text(1), "alice")
    await engine.operations.auto.tick()
    await engine.operations.auto.freeze_before_shutdown()
    assert await names(engine) == []
    engine.close()


async def test_an_idle_session_is_frozen_once_and_again_after_new_activity(engine: Miniature) -> None:
    await engine.serve(text(1), "alice")
    await engine.operations.auto.tick()
    assert await names(engine) == []  # it has 30 minutes
    await silent(engine)
    await silent(engine)
    (window,) = await windows(engine)
    assert (window["session_id"], window["token_count"]) == ("alice", 96)
    assert mark_of(window["description"], window["tags"]) == Mark(Reason.IDLE, 1)
    assert "idle for" in window["description"]
    await engine.serve([*text(1), *text(2)], "alice")
    await silent(engine)
    assert [each["token_count"] for each in await windows(engine)] == [96, 192]


async def test_a_session_that_was_frozen_after_its_last_activity_is_left_alone(engine: Miniature) -> None:
    await engine.serve(text(1), "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="by-hand")
    await silent(engine)
    await engine.operations.auto.freeze_before_shutdown()
    assert await names(engine) == ["by-hand"]


async def test_a_session_shorter_than_a_chunk_is_not_frozen(engine: Miniature) -> None:
    await engine.serve(text(1)[:BLOCK_TOKENS], "alice")
    await silent(engine)
    assert await names(engine) == []


async def test_a_session_that_has_grown_by_the_threshold_is_frozen_while_it_runs(engine: Miniature) -> None:
    await policy(engine, token_threshold=96)
    for chunks in (1, 3, 4, 6):
        await engine.serve(text(1, chunks=chunks), "alice")
        await engine.operations.auto.tick()
        await engine.operations.auto.tick()
    assert [each["token_count"] for each in await windows(engine)] == [96, 192]
    assert mark_of((await windows(engine))[1]["description"], ["auto"]) == Mark(Reason.THRESHOLD, 2)


async def test_after_a_restart_an_earlier_threshold_is_not_a_reason_to_freeze(tmp_path: Path) -> None:
    for _ in range(2):
        engine = await Miniature.started(tmp_path, auto_freeze_enabled=True, auto_freeze_token_threshold=96)
        await engine.serve(text(1, chunks=4), "alice")
        await engine.operations.auto.tick()
        assert len(await names(engine)) == 1
        engine.close()


async def test_a_session_near_eviction_is_frozen_whole(engine: Miniature) -> None:
    await engine.serve(text(1), "alice")
    for number in range(2, 12):
        await engine.serve(text(number), f"other-{number}")
        await engine.operations.auto.tick()
    (first, *_) = await windows(engine)
    assert mark_of(first["description"], first["tags"]) == Mark(Reason.EVICTION, 1)
    await engine.evict()
    thawed = await engine.call(Op.THAW, window_name=first["name"])
    assert (thawed["restorable_tokens"], thawed["partial"], thawed["warning"]) == (96, False, None)
    assert await engine.resume(text(1), session_id="alice") == 96


async def test_evicted_blocks_are_left_out_and_window_and_thaw_say_partial(engine: Miniature) -> None:
    await engine.serve(text(1), "alice")
    await lose(engine, text(1), from_block=3)
    await engine.operations.auto.tick()
    (window,) = await windows(engine)
    assert "partial, 32 of 96 tokens" in window["description"]
    assert window["size_bytes"] == CHUNK_BYTES
    await engine.evict()
    thawed = await engine.call(Op.THAW, window_name=window["name"])
    assert (thawed["token_count"], thawed["restorable_tokens"], thawed["partial"]) == (96, 32, True)
    assert thawed["warning"] is not None and "from token 32 on" in thawed["warning"]
    assert await engine.resume(text(1), session_id="alice") == 32


async def test_a_session_that_was_evicted_whole_is_not_frozen_and_not_tried_again(engine: Miniature) -> None:
    await engine.serve(text(1), "alice")
    await engine.evict()
    await engine.operations.auto.tick()
    await engine.operations.auto.tick()
    assert await names(engine) == []
    assert counted(engine) == {("eviction", "CWM-2003"): 1}


async def test_before_a_shutdown_every_session_with_new_activity_is_frozen(engine: Miniature) -> None:
    await engine.serve(text(1), "alice")
    await engine.serve(text(2), "bob")
    await engine.call(Op.FREEZE, session_id="bob", window_name="bob-by-hand")
    await engine.serve(text(3))
    await engine.operations.auto.freeze_before_shutdown()
    marks = [mark_of(each["description"], each["tags"]) for each in await windows(engine)]
    assert marks == [None, Mark(Reason.SHUTDOWN, 1), Mark(Reason.SHUTDOWN, 1)]
    sessions = [each["session_id"] for each in await windows(engine)]
    assert sessions[0] == "bob" and sessions[1].startswith("anon-") and sessions[2] == "alice"


# --- what goes wrong ---


async def test_a_freeze_on_a_full_disk_is_tried_again_later_and_delays_no_other_session(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, auto_freeze_enabled=True, disk_cache_gb=3.5 * CHUNK_BYTES / GIB)
    await engine.serve(text(1, chunks=4), "large")
    await engine.serve(text(2, chunks=2), "small")
    await silent(engine)
    assert [each["session_id"] for each in await windows(engine)] == ["small"]
    await silent(engine)  # not before its time
    engine.operations.auto._not_before.clear()
    await engine.call(Op.DELETE, window_name=(await names(engine))[0])
    await silent(engine)
    assert counted(engine)[("idle", "CWM-4003")] == 2
    engine.close()


async def test_a_taken_name_gets_a_number(engine: Miniature) -> None:
    await policy(engine, naming_pattern="{session_id}")
    await engine.serve(text(1), "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="alice")
    await engine.serve([*text(1), *text(2)], "alice")
    await silent(engine)
    assert await names(engine) == ["alice", "alice-2"]


# --- what is kept ---


async def turns(engine: Miniature, number: int) -> None:
    """A session that is frozen by itself after each of so many turns."""
    for turn in range(1, number + 1):
        await engine.serve(text(1, chunks=turn), "alice")
        await silent(engine)


async def test_the_newest_windows_are_kept_and_generations_count_on(engine: Miniature) -> None:
    await policy(engine, naming_pattern="{session_id}.g{generation}", keep_last=2)
    await turns(engine, 4)
    assert await names(engine) == ["alice.g3", "alice.g4"]
    await engine.evict()
    assert (await engine.call(Op.THAW, window_name="alice.g4"))["restorable_tokens"] == 128


async def test_all_windows_are_kept_if_keep_last_is_0(engine: Miniature) -> None:
    await policy(engine, keep_last=0)
    await turns(engine, 4)
    assert len(await names(engine)) == 4


async def test_a_window_that_a_user_has_used_or_changed_is_never_deleted(engine: Miniature) -> None:
    await policy(engine, naming_pattern="g{generation}", keep_last=1)
    await turns(engine, 1)
    await engine.call(Op.THAW, window_name="g1")
    await engine.call(Op.CLONE, source_window="g1", target_window="my-clone")
    await engine.serve(text(1, chunks=5), "alice")
    await silent(engine)
    await engine.call(Op.TAG, window_name="g2", add=["mine"], description="the good one")
    await engine.call(Op.FREEZE, session_id="alice", window_name="by-hand", tags=["auto"])
    for turn in (6, 7):
        await engine.serve(text(1, chunks=turn), "alice")
        await silent(engine)
    # g2 is somebody's, and no longer counts: the next one is the second of its kind.
    assert set(await names(engine)) == {"g1", "my-clone", "g2", "by-hand", "g3"}


async def test_windows_of_a_hook_are_kept_separately_up_to_the_same_number(engine: Miniature) -> None:
    await policy(engine, keep_last=1)
    for turn in (1, 2):
        await engine.serve(text(1, chunks=turn), "alice")
        mark = Mark(Reason.COMPACTION, turn)
        await engine.call(
            Op.FREEZE,
            session_id="alice",
            window_name=f"compact-{turn}",
            description=mark.described("before a compaction"),
            tags=["auto", "compact"],
        )
    await engine.serve(text(1, chunks=3), "alice")
    await silent(engine)
    assert (await names(engine))[0] == "compact-2" and len(await names(engine)) == 2


async def test_hooks_windows_are_all_kept_while_the_policy_is_off(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, auto_freeze_keep_last=1)
    for turn in (1, 2):
        await engine.serve(text(1, chunks=turn), "alice")
        description = Mark(Reason.SESSION_END, turn).described("x")
        await engine.call(
            Op.FREEZE, session_id="alice", window_name=f"end-{turn}", description=description, tags=["auto"]
        )
    assert len(await names(engine)) == 2
    engine.close()


# --- the policy ---


async def test_a_change_survives_a_restart_and_reset_returns_to_the_settings(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    assert (await policy(engine))["enabled"] is False
    told = await policy(engine, enabled=True, token_threshold=5, tags=["project-x"])
    engine.close()
    engine = await Miniature.started(tmp_path, auto_freeze_keep_last=8)
    again = await policy(engine)
    assert again == {**told, "keep_last": 8}
    assert (await policy(engine, reset=True))["enabled"] is False
    engine.close()
    engine = await Miniature.started(tmp_path)
    assert (await policy(engine))["token_threshold"] == 100_000
    engine.close()


async def test_a_wrong_change_changes_nothing(engine: Miniature) -> None:
    before = await policy(engine)
    with pytest.raises(CWMError) as caught:
        await policy(engine, keep_last=9, naming_pattern="{user}")
    assert caught.value.code is Code.ARGUMENT
    assert await policy(engine) == before


async def test_a_stored_policy_that_can_t_be_read_does_not_stop_the_start(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    await engine.catalog.run(lambda catalog: catalog.note("auto-freeze policy", "{"))
    engine.close()
    engine = await Miniature.started(tmp_path)
    assert (await policy(engine))["enabled"] is False
    engine.close()


async def test_the_policy_s_tags_are_on_its_windows(engine: Miniature) -> None:
    await engine.serve(text(1), "alice")
    await silent(engine, tags=["project-x"])
    assert (await windows(engine))[0]["tags"] == ["auto", "project-x"]


async def test_the_policy_and_the_list_of_sessions_show_the_next_freeze(engine: Miniature) -> None:
    assert (await policy(engine))["next_action"] is None
    await engine.serve(text(1), "alice")
    await engine.serve(text(2), "bob")
    (bob, alice) = (await engine.call(Op.SESSIONS))["sessions"]
    told = (await policy(engine))["next_action"]
    assert told == {"session_id": "alice", "reason": "idle", "due_at": alice["auto_freeze_at"]}
    assert alice["auto_freeze_at"] <= bob["auto_freeze_at"]
    await silent(engine)
    assert [each["auto_freeze_at"] for each in (await engine.call(Op.SESSIONS))["sessions"]] == [None, None]
    assert (await policy(engine))["next_action"] is None


def test_the_due_time_is_a_time_and_not_a_number_of_minutes() -> None:
    assert Policy(enabled=True, idle_timeout_minutes=0.5).idle_due_at(Micros(0)) == 30_000_000


async def test_an_engine_that_computes_nothing_is_seldom_disturbed(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    auto = engine.operations.auto

    async def look() -> None:
        nonlocal looks
        looks += 1

    monkeypatch.setattr(auto, "tick", look)
    for _ in range(2 * QUIET_TICKS):
        await auto.tick_unless_quiet()
    assert looks == 2
    engine.scheduler.step_jobs(tokens=16)
    await auto.tick_unless_quiet()
    assert looks == 3
