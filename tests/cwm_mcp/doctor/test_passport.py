"""`cwm show --passport` and `cwm doctor --against`: what keeps an engine from loading a window, field by field."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def verdict(name: str) -> dict[str, Any]:
    found = json.loads(cwm("doctor", "--against", name, "--json").stdout)["checks"][-1]
    assert found["name"] == "passport"
    return dict(found)


@pytest.fixture(autouse=True)
def _nobody_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_VLLM_URL", "http://127.0.0.1:9")


def test_a_window_s_passport_is_shown_with_and_without_json(filled: Path) -> None:
    assert json.loads(cwm("show", "stem", "--passport", "--json").stdout) == {
        "window_name": "stem",
        "passport": {"format": "1"},
    }
    assert cwm("show", "stem", "--passport").stdout.split() == ["format", "1"]


def test_a_session_has_no_passport_and_a_lost_window_none(filled: Path) -> None:
    for words, code in ((["--session", "talk"], "CWM-1003"), (["nowhere"], "CWM-2002")):
        ran = cwm("show", *words, "--passport")
        assert ran.exit_code == (2 if code == "CWM-1003" else 1) and code in ran.output


def test_every_field_that_differs_is_named_with_both_values(filled: Path, settings: Settings) -> None:
    settings.passport_path.write_text(json.dumps({"weights": "w", "format": "2", "rotary": "as configured"}))
    found = verdict("stem")
    assert found["status"] == "error" and "cwm serve" in found["next"]
    for told in ("weights is 'absent' in the window and 'w' in the engine", "format is '1'", "'2'"):
        assert told in found["message"]
    assert "rotary" not in found["message"], "an older window counts as made without such options"


def test_a_window_that_fits_is_well_and_without_an_engine_s_word_nothing_is_said(
    filled: Path, settings: Settings
) -> None:
    assert verdict("stem")["status"] == "skipped"
    settings.passport_path.write_text(json.dumps({"format": "1"}))
    assert verdict("stem")["status"] == "ok"
    assert verdict("nowhere")["status"] == "error"


def test_without_the_option_no_window_is_compared(filled: Path) -> None:
    assert all(each["name"] != "passport" for each in json.loads(cwm("doctor", "--json").stdout)["checks"])
