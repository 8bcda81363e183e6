"""`cwm warm` reads several windows and says what is in memory."""

import json
from pathlib import Path

from typer.testing import CliRunner

from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from tests.cwm_mcp.canned import canned_engine_on_a_thread

WARMED = {
    "window_name": "w",
    "token_count": 150,
    "ready_tokens": 144,
    "read_by_tier": {"disk": 144},
    "duration_ms": 12.5,
    "warning": None,
}


def test_it_says_how_much_is_in_memory_and_what_to_type_next(home: Path, settings: Settings) -> None:
    with canned_engine_on_a_thread(settings, WARM=WARMED) as engine:
        ran = CliRunner().invoke(app, ["warm", "w", "v"])
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.startswith("288 tokens of 2 windows are in memory.\nNext: cwm thaw w\n")
    assert [args.window_name for args in engine.asked if hasattr(args, "window_name")] == ["w", "v"]


def test_what_does_not_fit_is_exit_code_1(home: Path, settings: Settings) -> None:
    small = {**WARMED, "ready_tokens": 64, "warning": "CPU memory is too small for the rest"}
    with canned_engine_on_a_thread(settings, WARM=small):
        ran = CliRunner().invoke(app, ["warm", "w", "--json"])
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["windows"][0]["warning"] == "CPU memory is too small for the rest"
