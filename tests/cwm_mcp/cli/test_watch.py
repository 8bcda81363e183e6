"""`cwm stats --watch`: a process of its own that follows, and ends when nobody wants it any more."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cwm_mcp.cli.app import app
from tests.support.paths import ROOT


def watching(*more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "cwm_mcp.cli", "stats", "0.1", "--watch", *more]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_tells_again_and_again_until_it_is_asked_to_end(filled: Path, ending: signal.Signals) -> None:
    with watching("--json") as process:
        assert process.stdout is not None and process.stderr is not None
        told = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(ending)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
    assert [each["kv_store"]["total_blocks"] for each in told] == [5, 5, 5]


def test_a_time_without_a_watch_is_refused(filled: Path) -> None:
    ran = CliRunner().invoke(app, ["stats", "5"])
    assert ran.exit_code == 2 and "--watch" in ran.output


def test_it_ends_in_silence_when_nobody_reads_any_more(filled: Path) -> None:
    with watching("--json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
