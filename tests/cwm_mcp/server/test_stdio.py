"""`python -m cwm_mcp` as an agent starts it: a process of its own, on its stdin and stdout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_it_answers_without_an_engine_and_without_loading_one(filled: Path, tmp_path: Path, era: str) -> None:
    server = StdioServerParameters(
        command=sys.executable,
        # Python then names every module that it loads on stderr.
        args=["-X", "importtime", "-m", "cwm_mcp"],
        env={name: value for name, value in os.environ.items() if name.startswith("CWM_")},
        cwd=ROOT,
    )
    with (tmp_path / "log").open("w+") as log:
        async with Client(stdio_client(server, errlog=log), mode=era) as client:
            tools = (await client.list_tools()).tools
            windows = await client.call_tool("window_list", {})
            thaw = await client.call_tool("window_thaw", {"window_name": "stem"})
        log.seek(0)
        loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in log if line.startswith("import time:")}
    assert len(tools) == 12
    assert windows.structured_content is not None
    assert windows.structured_content["total"] == 3
    assert thaw.is_error
    assert (thaw.meta or {})["cwm/error"]["code"] == 5001
    assert "cwm_mcp" in loaded
    assert loaded.isdisjoint({"torch", "vllm", "lmcache", "numpy", "httpx", "redis", "prometheus_client", "typer"})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("CWM_VLLM_URL", "ftp://localhost"),
        ("CWM_DISK_CACHE_GB", "-1"),
        ("CWM_HOME", "/dev/null/home"),
        ("CWM_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line_and_exit_code_2(home: Path, setting: str, value: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "cwm_mcp"],
        cwd=ROOT,
        env={**os.environ, setting: value},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("CWM-1003: ")
    assert setting in line
