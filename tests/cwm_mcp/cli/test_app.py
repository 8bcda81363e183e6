"""`cwm`: the tools' answers and errors for a shell."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.protocol.calls import FreezeArgs, Op
from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from tests.cwm_mcp.canned import FROZEN, PROVED, STATUS, CannedEngine, canned_engine_on_a_thread
from tests.cwm_mcp.server.test_tools import answer, connected
from tests.support.paths import ROOT


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def as_tool(settings: Settings, tool: str, **arguments: Any) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        async with connected(settings) as client:
            return await answer(client, tool, **arguments)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("words", "tool", "arguments"),
    [
        (["ls"], "window_list", {}),
        (["ls", "-t", "debug", "--sort", "name", "--order", "asc"], "window_list", {"tags": ["debug"]}),
        (["show", "stem"], "window_status", {"window_name": "stem"}),
        (["show", "stem", "--blocks"], "window_status", {"window_name": "stem", "include_blocks": True}),
        (["sessions"], "session_list", {}),
        (["stats"], "cache_stats", {}),
        (["metrics"], "get_metrics_data", {}),
        (["metrics", "cwm_w", "--prometheus"], "get_metrics_data", {"format": "prometheus", "prefix": "cwm_w"}),
    ],
)
def test_json_is_the_tools_own_result(
    filled: Path, settings: Settings, words: list[str], tool: str, arguments: dict[str, Any]
) -> None:
    printed = cwm(*words, "--json")
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout) == as_tool(settings, tool, **arguments)


def test_a_table_shows_what_was_asked_for(filled: Path) -> None:
    listed = cwm("ls").stdout
    assert all(name in listed for name in ("stem", "branch", "stem-for-alice"))
    shown = cwm("show", "branch").stdout
    assert "20.0 KiB" in shown
    assert "1290" in shown


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["freeze", "s", "w"], 5001),
        (["thaw", "stem"], 5001),
        (["clone", "stem", "w"], 5001),
        (["tag", "stem", "--add", "x"], 5001),
        (["prove", "stem"], 5001),
        (["rm", "stem", "--force"], 5001),
        (["show", "nothing"], 2002),
        (["show"], 1003),
        (["freeze", " ", "w"], 1001),
        (["freeze", "s", ".w"], 1002),
        (["ls", "--limit", "0"], 1003),
        (["health", "gpu"], 1003),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_code_1_or_2_for_a_wrong_command_line(
    filled: Path, words: list[str], code: int
) -> None:
    ran = cwm(*words)
    assert (ran.exit_code, ran.stdout) == (2 if code < 2000 else 1, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"CWM-{code}: ")


def test_show_has_the_description_the_tags_and_the_session(filled: Path) -> None:
    rows = dict(line.split(None, 1) for line in cwm("show", "branch").stdout.splitlines())
    assert (rows["description"].strip(), rows["tags"].strip()) == ("the branch window", "project-x, debug")
    assert (rows["session_id"].strip(), rows["unique_bytes"].strip()) == ("talk", "8.0 KiB")


def test_a_disk_that_is_nearly_full_is_not_healthy(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (filled / "chunks").mkdir()
    monkeypatch.setattr("cwm_connector.core.folders.free_bytes", lambda folder: 3 << 20)
    shown = cwm("health").stdout
    assert re.search(r"disk +degraded +3 MiB free", shown)
    assert "no engine" in shown.splitlines()[0]


def test_an_error_with_json_is_the_tools_own(filled: Path) -> None:
    ran = cwm("show", "nothing", "--json")
    assert (ran.exit_code, ran.stdout) == (1, "")
    problem = json.loads(ran.stderr)["cwm/error"]
    assert (problem["code"], problem["retryable"], problem["context"]) == (2002, False, {"window": "nothing"})
    assert json.loads(cwm("freeze", " ", "w", "--json").stderr)["cwm/error"]["code"] == 1001
    assert cwm("show", "nothing").stderr.startswith("CWM-2002: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "nothing"], "cwm ls shows what there is"),
        (["show"], "give either WINDOW or --session"),
        (["ls", "--sort", "foo"], "--sort must be one of"),
        (["ls", "--limit", "0"], "--limit must be"),
        (["sessions", "--state", "foo"], "--state must be one of"),
        (["thaw", "stem", "--max-tokens", "4"], "--max-tokens is the length of a reply; give a --prompt with it"),
        (["show", "window_list"], "no window named 'window_list'; cwm ls shows"),
    ],
)
def test_an_error_names_commands_and_options_and_no_tools(filled: Path, words: list[str], said: str) -> None:
    assert said in cwm(*words).stderr


def test_a_home_without_a_store_is_mentioned(home: Path) -> None:
    ran = cwm("ls")
    assert ran.exit_code == 0
    assert ran.stderr.startswith(f"nothing is stored in {home} yet; is CWM_HOME that of the engine?")


def test_health_exits_with_1_where_something_is_unhealthy(filled: Path) -> None:
    ran = cwm("health", "--json")
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["status"] == "unhealthy"
    assert cwm("health", "catalog").exit_code == 0


def test_a_setting_that_cannot_work_exits_with_2(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_CPU_CACHE_GB", "0")
    ran = cwm("ls")
    assert ran.exit_code == 2
    assert "CWM_CPU_CACHE_GB" in ran.stderr


def test_a_home_that_is_a_file_is_called_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("CWM_HOME", str(home / "file"))
    ran = cwm("ls")
    assert ran.exit_code == 2
    assert ran.stderr == f"CWM-1003: CWM_HOME is {home}/file, but {home}/file is not a folder\n"


def test_the_command_runs_in_a_process_of_its_own(filled: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "cwm_mcp.cli", "ls", "--json"],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["total"] == 3


# --- with something on the socket ---


@pytest.fixture
def engine(settings: Settings) -> Iterator[CannedEngine]:
    answers = {"FREEZE": FROZEN, "STATUS": STATUS, "PROVE": PROVED}
    with canned_engine_on_a_thread(settings, **answers) as canned:
        yield canned


@pytest.mark.parametrize(("outcome", "code"), [("equal", 0), ("different", 1), ("none", 1)])
def test_a_proof_that_is_not_equal_exits_with_1(engine: CannedEngine, outcome: str, code: int) -> None:
    engine.answers[Op.PROVE] = {**PROVED, "proof": outcome}
    ran = cwm("prove", "w")
    assert ran.exit_code == code
    assert f"proof                          {outcome}" in ran.stdout and "proof_check.loaded_tokens" in ran.stdout
    assert json.loads(cwm("prove", "w", "--json").stdout)["proof"] == outcome


def test_a_freeze_prints_the_tools_result(engine: CannedEngine) -> None:
    ran = cwm("freeze", "s", "w", "-t", "a", "-t", "b", "-d", "why", "--json")
    assert json.loads(ran.stdout) == FROZEN
    assert engine.asked == [FreezeArgs("s", "w", description="why", tags=["a", "b"])]
    assert "3.0 MiB" in cwm("freeze", "s", "w").stdout


def test_a_freeze_without_a_name_is_named_after_its_session_and_the_time(engine: CannedEngine) -> None:
    assert cwm("freeze", "alice@example.com/main", "-q").exit_code == 0
    (asked,) = engine.asked
    assert isinstance(asked, FreezeArgs)
    assert re.fullmatch(r"alice-example.com-main-\d{8}-\d{6}", asked.window_name)


def test_quiet_prints_the_name_alone(engine: CannedEngine) -> None:
    assert cwm("freeze", "s", "w", "--quiet").stdout == "w\n"


def test_a_freeze_says_in_a_sentence_what_it_did_and_what_to_type_next(engine: CannedEngine) -> None:
    sentence, following, empty, *details = cwm("freeze", "s", "w").stdout.splitlines()
    assert sentence == "Froze s as w: 700 tokens, 3.0 MiB, 1.0 MiB of it new."
    assert (following, empty) == ("Next: cwm thaw w", "")
    assert any(line.split() == ["recomputed_tokens", "0"] for line in details)


@pytest.mark.parametrize(("form", "bar"), [([], True), (["--json"], False)])
def test_a_bar_is_drawn_on_the_terminal_and_never_into_the_result(
    engine: CannedEngine, form: list[str], bar: bool
) -> None:
    outer, inner = os.openpty()
    command = [sys.executable, "-m", "cwm_mcp.cli", "freeze", "s", "w", *form]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=inner) as ran:
        os.close(inner)
        drawn = b""
        with contextlib.suppress(OSError):  # how Linux says that the last process has closed the terminal
            while part := os.read(outer, 4096):
                drawn += part
        printed, _ = ran.communicate(timeout=60)
    os.close(outer)
    assert (b"freezing w" in drawn) is bar
    assert b"token_count" in printed
    assert b"freezing" not in printed


# --- serve ---


@pytest.mark.parametrize("words", [["--dry-run", "org/m", "--port", "8001"], ["org/m", "--port", "8001", "--dry-run"]])
def test_a_dry_run_prints_the_command_and_starts_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr("cwm_mcp.serve.run", lambda command: pytest.fail("it ran"))
    ran = cwm("serve", *words)
    assert ran.exit_code == 0, ran.output
    (line,) = ran.stdout.splitlines()
    assert line.endswith("--port 8001")
    assert "org/m" in line
    assert '"kv_connector": "CWMConnector"' in line


def test_an_option_before_the_model_is_refused_rather_than_misread(home: Path) -> None:
    assert cwm("serve", "--port", "8001", "org/m").exit_code == 2


def test_another_connector_is_refused_before_vllm_starts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwm_mcp.serve.run", lambda command: pytest.fail("it ran"))
    ran = cwm("serve", "m", "--kv-transfer-config", '{"kv_connector": "Other"}')
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("CWM-1003: ")
