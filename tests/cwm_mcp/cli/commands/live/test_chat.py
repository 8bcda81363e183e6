"""`cwm chat`: a conversation goes on from a window in the terminal or in a pipe."""

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from tests.cwm_mcp.canned import CannedEngine, canned_engine_on_a_thread
from tests.cwm_mcp.vllm_server import VllmServer, vllm_server

THAWED = {
    "session_id": "w-chat",
    "cache_salt": "cwm-salt",
    "window_name": "w",
    "token_count": 4,
    "restorable_tokens": 4,
    "restored_by_tier": {},
    "restoration_time_ms": 1.0,
    "partial": False,
    "warning": None,
    "recompute_is_faster": None,
    "load": {"loaded": 4, "computed": 0, "because": "CWM_LOAD=always"},
}
TOKENS = {"window_name": "w", "token_ids": array("i", [5, 6, 7, 8]).tobytes()}


@pytest.fixture
def vllm(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmServer]:
    with vllm_server() as server:
        monkeypatch.setenv("CWM_VLLM_URL", server.url)
        yield server


@pytest.fixture
def engine(settings: Settings) -> Iterator[CannedEngine]:
    with canned_engine_on_a_thread(settings, THAW=THAWED, TOKENS=TOKENS) as canned:
        yield canned


def chat(*words: str, said: str) -> Result:
    return CliRunner().invoke(app, ["chat", *words], input=said)


def test_every_line_of_a_pipe_is_a_turn(vllm: VllmServer, engine: CannedEngine) -> None:
    ran = chat("w", said="Where?\n\nWhy?\n")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout == f"{vllm.reply}\n{vllm.reply}\n"
    assert "4 of 4 tokens load" in ran.stderr and "24 of them not computed again" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "Next: cwm freeze w-chat"
    assert [body["prompt"][:4] for body in vllm.asked["/v1/completions"]] == [[5, 6, 7, 8]] * 2


def test_the_conversation_has_a_session_of_its_own(vllm: VllmServer, engine: CannedEngine) -> None:
    chat("w", said="")
    chat("w", "--session", "mine", said="")
    asked = [args.new_session_id for args in engine.asked if hasattr(args, "new_session_id")]
    assert asked == ["w-chat", "mine"]


def test_what_the_model_writes_cannot_control_the_terminal(vllm: VllmServer, engine: CannedEngine) -> None:
    vllm.reply = "\x1b[31mred\nline"
    assert chat("w", said="Where?\n").stdout == " [31mred\nline\n"


def test_an_error_ends_a_pipe_with_its_code(vllm: VllmServer, engine: CannedEngine) -> None:
    vllm.answers["/v1/completions"] = 500, {}
    ran = chat("w", said="Where?\nWhy?\n")
    assert ran.exit_code == 1 and "CWM-5001" in ran.stderr
    assert len(vllm.asked["/v1/completions"]) == 1


def test_a_window_that_is_not_there_is_named(vllm: VllmServer, settings: Settings, home: Path) -> None:
    gone = CWMError(Code.WINDOW_NOT_FOUND, "window 'w' not found; window_list shows what there is")
    with canned_engine_on_a_thread(settings, TOKENS=gone):
        ran = chat("w", said="Where?\n")
    assert ran.exit_code == 1 and "cwm ls" in ran.stderr
