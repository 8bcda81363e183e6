"""The process of `cwm serve` is found again and ended, and nothing else is."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_mcp import serve_process

POLITE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); print('ready', flush=True)\n"
WAITING = f"{POLITE}signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Return a list for processes, which are ended after the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def ready(home: Path) -> bool:
    return serve_process.last_lines(serve_process.log_path(home), 1) == ["ready"]


def begin(code: str, home: Path, started: list["subprocess.Popen[bytes]"]) -> int:
    process = serve_process.start([sys.executable, "-c", code], {}, home)
    started.append(process)
    while not ready(home):
        assert process.poll() is None
    return process.pid


def test_a_process_in_the_background_is_found_and_ended(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    pid = begin(WAITING, tmp_path, started)
    assert serve_process.serving(tmp_path) == pid
    assert serve_process.stop(pid, 30) < 30
    assert serve_process.serving(tmp_path) is None
    assert started[0].wait() == 0


def test_one_that_does_not_end_is_named(tmp_path: Path, started: list["subprocess.Popen[bytes]"]) -> None:
    pid = begin(DEAF, tmp_path, started)
    with pytest.raises(CWMError, match=f"process {pid}") as raised:
        serve_process.stop(pid, 0.2)
    assert raised.value.code is Code.OPERATION_TIMEOUT
    assert serve_process.serving(tmp_path) == pid


def test_another_process_of_the_same_number_is_not_taken_for_it(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    pid = begin(WAITING, tmp_path, started)
    (tmp_path / "serve.json").write_text(json.dumps({"pid": pid, "began": 1}))
    assert serve_process.serving(tmp_path) is None


@pytest.mark.parametrize("record", [None, "", "[]", '{"pid": "x"}', "{"])
def test_without_a_readable_record_nothing_is_found(tmp_path: Path, record: str | None) -> None:
    if record is not None:
        (tmp_path / "serve.json").write_text(record)
    assert serve_process.serving(tmp_path) is None


def test_a_program_that_is_not_there_is_an_error_and_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(CWMError, match="install vLLM again"):
        serve_process.start([str(tmp_path / "none")], {}, tmp_path)
    assert not (tmp_path / "serve.json").exists()


def test_the_log_and_the_record_are_private(tmp_path: Path, started: list["subprocess.Popen[bytes]"]) -> None:
    begin(WAITING, tmp_path, started)
    for path in (tmp_path / "serve.json", serve_process.log_path(tmp_path)):
        assert path.stat().st_mode & 0o777 == 0o600
