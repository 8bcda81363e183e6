"""connector.py on the miniature engine: a hook that fails once costs its own job and nothing else.

Each hook raises once, before or after its work, while a freeze or a load is under way. A job that is lost that way ends
as a failure, its blocks are given back, and the next freeze and the next load are whole.
"""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.output import SchedulerOutput

from cwm_connector.connector import CWMConnector
from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.calls import Op
from cwm_connector.step.jobs import StepJobs, StepReports
from tests.support.miniature import Miniature
from tests.support.stores import forget_memory, frozen, text

SCHEDULER = ("request_added", "matched_tokens", "request_finished", "step_jobs", "deliver")
WORKER = ("submit", "take_reports")


class Breaking:
    """Passes everything on. The method that is set in `broken` raises once."""

    def __init__(self, inside: Any) -> None:
        self._inside = inside
        self.broken: tuple[str, str] | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inside, name)
        if self.broken is None or self.broken[0] != name:
            return found
        _, when = self.broken

        def break_once(*arguments: Any) -> Any:
            if name in ("submit", "deliver") and not carried(arguments[0]):
                return found(*arguments)  # it breaks where that costs something
            if when == "after":
                answer = found(*arguments)
                if name in ("step_jobs", "take_reports") and not carried(answer):
                    return answer
            self.broken = None
            raise RuntimeError(f"broken on purpose: {name}")

        return break_once


def carried(moved: Any) -> list[Any]:
    """Return the jobs or the reports that a hook passes on."""
    if isinstance(moved, StepReports):
        return moved.reports
    return moved.jobs if isinstance(moved, StepJobs) else moved or []


class ThroughHooks:
    """Stands for both sides of the miniature engine and calls them as vLLM does, through the connector's hooks."""

    def __init__(self, engine: Miniature) -> None:
        self.scheduler, self.worker = Breaking(engine.scheduler), Breaking(engine.worker)
        self._side = engine.scheduler
        self._hooks = CWMConnector.__new__(CWMConnector)
        self._hooks._service = SimpleNamespace(scheduler=self.scheduler)  # type: ignore[assignment]
        self._hooks._worker = self.worker  # type: ignore[assignment]
        engine.scheduler, engine.worker = self, self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side, name)

    def request_added(self, request: Any) -> None:
        self._hooks.on_new_request(request)

    def matched_tokens(self, request: Any, computed: int) -> int | None:
        return self._hooks.get_num_new_matched_tokens(request, computed)[0]

    def blocks_allocated(self, request: Any, blocks: Any, external: int) -> None:
        self._hooks.update_state_after_alloc(request, blocks, external)

    def request_finished(self, request: Any) -> None:
        self._hooks.request_finished(request, [])

    def step_jobs(self) -> Any:
        meta = self._hooks.build_connector_meta(SchedulerOutput.make_empty())
        self._hooks._connector_metadata = meta
        return meta

    def submit(self, jobs: Any) -> None:
        self._hooks.wait_for_save()

    def take_reports(self) -> Any:
        return self._hooks.build_connector_worker_meta()

    def deliver(self, reports: StepReports) -> None:
        self._hooks.update_connector_output(SimpleNamespace(kv_connector_worker_meta=reports))

    def take_loaded(self) -> set[str]:
        return self._hooks.get_finished(set())[1] or set()

    def take_bad_blocks(self) -> set[int]:
        return self._hooks.get_block_ids_with_load_errors()

    def close(self) -> None:
        self.worker._inside.close()


@pytest.fixture(autouse=True)
def asked_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwm_connector.step.job_board.SILENCE_S", 0.3)
    monkeypatch.setattr("cwm_connector.step.loads_under_way.WAIT_LIMIT_S", 0.5)


async def stepping(engine: Miniature) -> None:
    """Make steps, as an engine that serves others does."""
    while True:
        await asyncio.sleep(0.02)
        engine._inbox.put(None)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("hook", [*SCHEDULER, *WORKER])
async def test_a_hook_that_fails_once_costs_one_job(tmp_path: Path, hook: str, when: str) -> None:
    engine = await Miniature.started(tmp_path)
    free = engine.pool.get_num_free_blocks()
    hooks = ThroughHooks(engine)
    side = hooks.worker if hook in WORKER else hooks.scheduler
    steps = asyncio.create_task(stepping(engine))
    async with asyncio.timeout(60):
        await engine.serve(text(1), "w")
        side.broken = (hook, when)
        try:
            await engine.call(Op.FREEZE, session_id="w", window_name="w")
        except CWMError as problem:
            assert problem.message
        if side.broken is not None:  # a freeze calls no such hook
            await engine.serve(text(3), "other")
        assert side.broken is None
        await frozen(engine, "v", text(2))
        forget_memory(engine)
        await engine.call(Op.THAW, window_name="v", new_session_id="r", prewarm=False)
        side.broken = (hook, when)
        assert await engine.resume(text(2), session_id="r") in (0, len(text(2)))
        side.broken = None
        await engine.call(Op.THAW, window_name="v", new_session_id="again")
        assert await engine.resume(text(2), session_id="again") == len(text(2))
        await engine.serve(text(1), "w")
        assert (await engine.call(Op.FREEZE, session_id="w", window_name="x"))["captured_tokens"] == len(text(1))
        await engine.engine.on_engine_thread(lambda side: None)
        assert engine.pool.get_num_free_blocks() == free
    steps.cancel()
    engine.close()


async def test_a_freeze_goes_on_after_its_recompute_though_the_hook_at_its_end_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await Miniature.started(tmp_path)
    ThroughHooks(engine)
    await engine.serve(text(1), "w")
    await engine.evict()

    def refuse(_: str) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(engine.scheduler._loads, "finished", refuse)
    async with asyncio.timeout(30):
        result = await engine.call(Op.FREEZE, session_id="w", window_name="w")
    assert result["recomputed_tokens"] == len(text(1))
    engine.close()


async def test_tokens_that_can_t_be_packed_stop_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await Miniature.started(tmp_path)
    ThroughHooks(engine)

    def refuse(*_: object) -> int:
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as broken:
        broken.setattr("cwm_connector.sessions.token_run.TokenRun.pack", refuse)
        await engine.serve(range(1000, 1064), "other")
        async with asyncio.timeout(30):
            await engine.engine.on_engine_thread(lambda side: None)
        assert not engine.scheduler.wants_step
    await frozen(engine, "w", text(1))
    engine.close()
