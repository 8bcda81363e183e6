"""Pauses and sleep: vLLM sleeps only when no copy is under way, and who calls meanwhile gets an answer at once."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Claim, TierName
from cwm_connector.protocol.calls import Op
from cwm_connector.step.job_board import DRAIN_S, CopyGate, JobBoard
from cwm_connector.step.jobs import LoadJob, Phase, PromoteJob, Report, SaveJob
from cwm_connector.step.save_plan import SavePlan
from tests.support.clock import Clock
from tests.support.miniature import Miniature

TEXT = list(range(100, 250))


def test_vllm_is_told_to_wait_until_saves_have_read_their_blocks_and_loads_are_over() -> None:
    board, clock = JobBoard(1), Clock()
    gate = CopyGate(board, lambda: False, clock=clock)
    assert gate.drained()
    save = SaveJob(board.next_id(), (), (TierName.DISK,), Claim(""))
    load = LoadJob(board.next_id(), "r", ())
    for job in (save, load, PromoteJob(board.next_id(), ())):
        board.post(job)
    assert not gate.drained()
    board.deliver([Report(save.id, 0, Phase.CAPTURED)])
    assert not gate.drained()
    board.deliver([Report(load.id, 0, Phase.FINISHED)])
    assert gate.drained(), "what is read into CPU memory does not touch vLLM's cache"


def test_no_copy_begins_while_vllm_waits_and_a_while_later_again() -> None:
    board, clock = JobBoard(1), Clock()
    gate = CopyGate(board, lambda: False, clock=clock)
    board.post(LoadJob(board.next_id(), "r", ()))
    assert not gate.is_closed and not gate.drained() and gate.is_closed
    with pytest.raises(CWMError, match=r"CWM-3001.*try again in a few seconds"):
        gate.require_open()
    clock.now += DRAIN_S
    gate.require_open()


async def test_a_freeze_of_an_engine_that_sleeps_is_refused_at_once(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    await engine.serve(TEXT, "alice")
    engine.asleep = True
    async with asyncio.timeout(5):
        with pytest.raises(CWMError, match=r"CWM-3001.*asleep or paused; wake it"):
            await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    engine.asleep = False
    assert (await engine.call(Op.FREEZE, session_id="alice", window_name="w"))["captured_tokens"] == 144
    engine.asleep = True
    assert (await engine.call(Op.THAW, window_name="w"))["restorable_tokens"] == 144
    engine.close()


async def test_a_freeze_that_is_cut_off_by_a_pause_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await Miniature.started(tmp_path)
    await engine.serve(TEXT, "alice")
    plan = engine.scheduler.plan_save

    def pause_first(*args: Any) -> Iterator[Sequence[SavePlan]]:
        engine.asleep = True
        return plan(*args)

    monkeypatch.setattr(engine.scheduler, "plan_save", pause_first)
    with pytest.raises(CWMError, match=r"CWM-3001.*asleep or paused"):
        await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    assert engine.engine.board.copies_cache() is False
    engine.close()


async def test_a_request_loads_nothing_while_vllm_is_about_to_drop_its_cache(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    await engine.evict()
    gate = engine.scheduler.copy_gate
    gate._closed_until = time.monotonic() + 600
    assert await engine.resume(TEXT, session_id="alice") == 0
    assert gate.drained()
    assert await engine.resume(TEXT, session_id="alice") == 144
    engine.close()


@pytest.mark.parametrize("canary", [False, True])
async def test_a_request_of_ours_that_vllm_did_not_take_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: bool
) -> None:
    refused: list[str] = []

    def refuse(_engine: Miniature, request_id: str, *_: object) -> None:
        refused.append(request_id)
        raise CWMError(Code.STATE, "the engine is asleep or paused")

    monkeypatch.setattr("cwm_connector.operations.passport.canary.RETRY_S", 0.01)
    monkeypatch.setattr(Miniature, "_prefill", refuse)
    engine = await Miniature.started(tmp_path, canary=canary)
    await engine.serve(TEXT, "alice")
    await engine.evict()
    if not canary:
        with pytest.raises(CWMError, match=r"CWM-3001"):
            await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    async with asyncio.timeout(20):
        while len(refused) < (5 if canary else 1):  # noqa: ASYNC110 the canary tries again and again
            await asyncio.sleep(0.01)
    await engine.engine.on_engine_thread(lambda side: None)
    assert len(engine.scheduler._recomputes) <= canary, "but for the canary that may just be under way"
    engine.close()
