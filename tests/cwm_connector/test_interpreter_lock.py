"""interpreter_lock.py: threads take short turns in a step that computes nothing, and Python's in every other."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.v1.core.sched.output import SchedulerOutput

from cwm_connector.connector import CWMConnector
from cwm_connector.interpreter_lock import SHORT_S
from cwm_connector.step.jobs import StepJobs
from tests.support.miniature import Miniature

PYTHONS_S = 0.005


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def interval_after(step: KVConnectorMetadata) -> float:
    connector = object.__new__(CWMConnector)
    connector._worker = None
    connector._connector_metadata = step
    connector.wait_for_save()
    return sys.getswitchinterval()


def test_turns_are_short_while_no_step_computes() -> None:
    assert interval_after(StepJobs(computes=False)) == pytest.approx(SHORT_S, rel=0.05)
    assert interval_after(StepJobs(computes=True)) == pytest.approx(PYTHONS_S)


def test_the_scheduler_s_process_keeps_to_it_and_tells_the_workers(tmp_path: Path) -> None:
    engine = Miniature(tmp_path)
    connector = object.__new__(CWMConnector)
    connector._service = SimpleNamespace(scheduler=engine.scheduler)  # type: ignore[assignment]
    for tokens, interval in ((0, SHORT_S), (1, PYTHONS_S), (0, SHORT_S)):
        step = SchedulerOutput.make_empty()
        step.total_num_scheduled_tokens = tokens
        jobs = connector.build_connector_meta(step)
        assert isinstance(jobs, StepJobs) and jobs.computes is bool(tokens)
        assert sys.getswitchinterval() == pytest.approx(interval, rel=0.05)
    engine.close()
