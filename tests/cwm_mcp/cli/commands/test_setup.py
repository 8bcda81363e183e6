"""Shell completion, for real where it can be: a real catalog and a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cwm_mcp.cli.app import app
from tests.support.paths import ROOT


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    script = cwm("completion", shell).stdout
    assert "_CWM_COMPLETE" in script and f"complete_{shell}" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cwm tr", {"tree"}),
        ("cwm show st", {"stem", "stem-for-alice"}),
        ("cwm diff stem br", {"branch"}),
        ("cwm ls --tag d", {"debug"}),
        ("cwm show nothing-like-it", set()),
    ],
)
def test_a_real_bash_completes_commands_and_the_names_in_the_store(
    filled: Path, tmp_path: Path, line: str, expected: set[str]
) -> None:
    command = tmp_path / "cwm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cwm_mcp.cli "$@"\n')
    command.chmod(0o755)
    words = line.split(" ")
    script = (
        f'eval "$(cwm completion bash)"\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words) - 1}\n'
        '_cwm_completion cwm\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert set(ran.stdout.split()) == expected, ran.stderr
