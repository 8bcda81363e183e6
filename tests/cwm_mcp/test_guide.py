"""The user guide's snippets that need no engine, and the table that maps its sections to tests."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from cwm_connector.core.units import GIB
from cwm_connector.settings import Settings, load_settings
from tests.cwm_mcp.server.test_tools import TABLE, answer, connected, error
from tests.support.paths import ROOT

CONFIGURATION = """
{
  "mcpServers": {
    "context-window-manager": {
      "command": "python",
      "args": ["-m", "context_window_manager"],
      "env": {
        "CWM_VLLM_URL": "http://localhost:8000"
      }
    }
  }
}
"""
"""Copied exactly from the guide."""
REPOSITORY = "https://git.example.org/owner/repository"
"""Stands for the address of this project's repository."""


def checkout(folder: Path) -> Path:
    """Copy what an installation reads, because a build leaves files."""
    source = folder / "source"
    for package in ("cwm_connector", "cwm_mcp", "context_window_manager"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    return source


def commit(source: Path) -> None:
    """Make the folder a git repository with one commit, which needs nothing of the user's configuration."""
    git = ["git", "-C", str(source), "-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--no-gpg-sign", "--message=Test"]):
        subprocess.run([*git, *words], check=True, timeout=60)


@pytest.mark.parametrize("wanted", [".[cuda]", f"context-window-manager[cuda] @ git+{REPOSITORY}"])
def test_installation(tmp_path: Path, wanted: str) -> None:
    # The guide's `pip install` by name would bring another project: a checkout or a git URL is offered instead.
    source = checkout(tmp_path)
    commit(source)
    # Git reads the folder where a command names the repository.
    git = {"COUNT": "1", "KEY_0": f"url.file://{source}.insteadOf", "VALUE_0": REPOSITORY}
    environment = {**os.environ, **{f"GIT_CONFIG_{name}": value for name, value in git.items()}}
    # Without what it depends on, which is here already.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(tmp_path / "site"), wanted], cwd=source, env=environment, check=True, timeout=100)
    ran = subprocess.run(
        [sys.executable, "-m", "context_window_manager"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "CWM_HOME": str(tmp_path / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert (tmp_path / "site" / "bin" / "cwm").exists()


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_configuration(home: Path, tmp_path: Path, era: str) -> None:
    configured = json.loads(CONFIGURATION)["mcpServers"]["context-window-manager"]
    # Of the client's own environment: where python is, and a home of the test's.
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    server = StdioServerParameters(
        command=configured["command"], args=configured["args"], env={**own, **configured["env"]}, cwd=ROOT
    )
    async with Client(stdio_client(server), mode=era) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TABLE.keys()
        assert (await answer(client, "window_list"))["total"] == 0
        vllm = await answer(client, "health_check", component="vllm")
    assert "http://localhost:8000" in vllm["components"][0]["message"]


async def test_the_errors_of_troubleshooting_say_what_to_do_next(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        session = await error(client, "window_status", session_id="your-session-id")
        freeze = await error(client, "window_freeze", session_id="session", window_name="project-v2")
    assert (session["code"], freeze["code"]) == (5001, 5001)
    assert "cwm serve" in freeze["message"]


def test_increase_cpu_cache_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_CPU_CACHE_GB", "16")
    assert load_settings().cpu_cache_bytes == 16 * GIB


async def test_health_check_diagnostics_without_an_engine(
    filled: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connected(settings) as client:
        health = await answer(client, "health_check")

    if health["status"] == "unhealthy":
        for component in health["components"]:
            if component["status"] != "healthy":
                print(f"Issue with {component['name']}: {component['message']}")

    said = capsys.readouterr().out
    assert "Issue with vllm: no answer from http://127.0.0.1:9" in said
    assert "Issue with engine: " in said


async def test_old_windows_are_found_without_an_engine(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        old = await answer(client, "window_list", created_before="2026-01-02T12:00:00Z")
    assert [window["name"] for window in old["windows"]] == ["branch", "stem"]


def test_every_test_that_the_table_names_is_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", (ROOT / "tests" / "GUIDE.md").read_text())
    there = {
        (file, node.name)
        for file in {file for file, _ in named}
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(named) > 25
    assert set(named) - there == set()


@pytest.mark.parametrize("file", ["tests/engine/test_guide_use.py", "tests/engine/test_guide_workflows.py"])
def test_every_test_of_the_guide_is_in_the_table(file: str) -> None:
    tests = {
        node.name
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
    table = (ROOT / "tests" / "GUIDE.md").read_text()
    assert {name for name in tests if f"`{file}::{name}`" not in table} == set()
