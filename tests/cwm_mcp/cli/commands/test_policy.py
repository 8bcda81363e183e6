"""`cwm policy`: shown, changed, refused."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.protocol.calls import PolicyArgs
from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from tests.cwm_mcp.canned import CannedEngine, canned_engine_on_a_thread

POLICY: dict[str, Any] = {
    "enabled": True,
    "idle_timeout_minutes": 30.0,
    "token_threshold": 100_000,
    "naming_pattern": "auto-{session_id}-{timestamp}",
    "keep_last": 3,
    "tags": ["x"],
    "next_action": {"session_id": "alice", "reason": "idle", "due_at": "2026-01-23T10:00:00.000Z"},
}


@pytest.fixture
def engine(settings: Settings) -> Iterator[CannedEngine]:
    with canned_engine_on_a_thread(settings, POLICY=POLICY) as canned:
        yield canned


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, ["policy", *words])


def test_without_options_the_policy_is_only_shown(engine: CannedEngine) -> None:
    shown = cwm().stdout
    assert "auto-{session_id}-{timestamp}" in shown and "alice" in shown
    assert json.loads(cwm("--json").stdout) == POLICY
    assert engine.asked == [PolicyArgs(), PolicyArgs()]


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["--enable"], PolicyArgs(enabled=True)),
        (["--disable"], PolicyArgs(enabled=False)),
        (["--idle", "0", "--tokens", "0"], PolicyArgs(idle_timeout_minutes=0.0, token_threshold=0)),
        (["--pattern", "{session_id}", "--keep-last", "9"], PolicyArgs(naming_pattern="{session_id}", keep_last=9)),
        (["-t", "a", "-t", "b"], PolicyArgs(tags=["a", "b"])),
        (["--reset", "--enable"], PolicyArgs(reset=True, enabled=True)),
    ],
)
def test_an_option_changes_what_it_names_and_nothing_else(
    engine: CannedEngine, words: list[str], change: PolicyArgs
) -> None:
    assert cwm(*words).exit_code == 0
    assert engine.asked == [change]


def test_without_an_engine_it_says_so(settings: Settings) -> None:
    ran = cwm("--enable")
    assert (ran.exit_code, ran.stdout) == (1, "") and ran.stderr.startswith("CWM-5001")
