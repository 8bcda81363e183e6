"""`cwm top` shows the engine at a moment, and the rates between two of them."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from typer.testing import CliRunner

from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from cwm_mcp.cli.commands.live.top import Top, Transfers, picture
from tests.cwm_mcp.canned import STORE, canned_engine_on_a_thread
from tests.support.paths import ROOT

SESSIONS: dict[str, Any] = {"sessions": [], "total": 0, "has_more": False}


def sample(name: str, value: float, **labels: str) -> dict[str, Any]:
    return {"name": name, "type": "counter", "value": value, "labels": labels, "help": "h"}


METRICS = {
    "metrics": [
        sample("cwm_loaded_tokens_total", 100, tier="cpu"),
        sample("cwm_loaded_tokens_total", 28, tier="disk"),
        sample("cwm_stored_bytes_total", 4096),
    ]
}


def read_once(settings: Settings) -> dict[str, Any]:
    with canned_engine_on_a_thread(settings, STATS={"kv_store": STORE}, SESSIONS=SESSIONS, METRICS=METRICS):
        ran = CliRunner().invoke(app, ["top", "--json"])
    assert ran.exit_code == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_counters_are_summed_over_the_tiers(home: Path, settings: Settings) -> None:
    shown = read_once(settings)
    assert shown["transfers"]["loaded_tokens"] == 128 and shown["transfers"]["stored_bytes"] == 4096
    assert shown["transfers"]["missed_tokens"] is None
    assert shown["kv_store"]["tiers"]["cpu"]["blocks"] == 2


def test_the_rates_are_those_between_two_moments(home: Path, settings: Settings) -> None:
    now = msgspec.convert(read_once(settings), Top)
    before = msgspec.structs.replace(
        now, at="2026-01-01T00:00:00+00:00", transfers=Transfers(stored_bytes=2048, loaded_tokens=28)
    )
    now = msgspec.structs.replace(now, at="2026-01-01T00:00:02+00:00")
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(picture(now, before))
    text = console.export_text()
    assert "128 tokens   50 tokens/s" in text and "4.0 KiB   1.0 KiB/s" in text


def test_a_pipe_gets_one_picture_also_without_an_engine(filled: Path) -> None:
    ran = CliRunner().invoke(app, ["top"])
    assert ran.exit_code == 0
    assert "disk" in ran.stdout and "loaded" in ran.stdout


def test_a_terminal_is_drawn_again_until_ctrl_c(filled: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cwm_mcp.cli", "top", "--seconds", "0.2"]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        drawn = b""
        while drawn.count(b"recomputed") < 2:
            drawn += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        os.set_blocking(ours, False)
        assert process.wait(20) == 0
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()
    os.close(ours)
