"""thread.py: the control thread starts, fails and stops."""

import pytest

from cwm_connector.control.thread import ControlThread
from tests.support.control import PATIENCE_S, Waiting


def test_a_stopped_thread_has_ended_its_tasks_and_can_be_stopped_again() -> None:
    thread, waiting = ControlThread(), Waiting()
    thread.start()
    work = thread.submit(waiting(None, lambda *_: None))
    assert waiting.started.wait(PATIENCE_S)
    thread.stop()
    assert waiting.cancelled.is_set()
    assert work.cancelled()
    thread.stop()


def test_a_thread_that_was_never_started_can_be_stopped() -> None:
    ControlThread().stop()


def test_a_failed_start_raises_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("asyncio.events.new_event_loop", no_loop)
    with pytest.raises(OSError, match="Too many open files"):
        ControlThread().start()
