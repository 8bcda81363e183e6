"""interpreter_lock.py: threads take short turns in a step that computes nothing, and Python's in every other."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from cwm_connector.connector import CWMConnector
from cwm_connector.interpreter_lock import SHORT_S
from cwm_connector.step.jobs import StepJobs
from tests.support.miniature import Miniature


@pytest.fixture(autouse=True)
def pythons() -> Iterator[float]:
    before = sys.getswitchinterval()
    yield before
    sys.setswitchinterval(before)


def interval_after(step: KVConnectorMetadata) -> float:
    connector = object.__new__(CWMConnector)
    connector._worker = None
    connector._connector_metadata = step
    connector.wait_for_save()
    return sys.getswitchinterval()


def test_turns_are_short_while_no_step_computes(pythons: float) -> None:
    assert interval_after(StepJobs(computes=False)) == pytest.approx(SHORT_S, rel=0.05)
    assert interval_after(StepJobs(computes=True)) == pythons


def test_a_step_says_whether_it_computes(tmp_path: Path) -> None:
    engine = Miniature(tmp_path)
    assert [engine.scheduler.step_jobs(tokens).computes for tokens in (0, 1, 4096)] == [False, True, True]
    engine.close()
