"""The outputs that README shows are what the commands print over the tests' example home."""

import asyncio
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.settings import Settings
from tests.cwm_mcp import homes
from tests.cwm_mcp.canned import FROZEN, canned_engine

ROOT = Path(__file__).resolve().parents[2]
STEM = {
    "window_name": "stem",
    "session_id": "talk",
    "token_count": 778,
    "captured_tokens": 768,
    "block_count": 3,
    "total_size_bytes": 3 * homes.CHUNK_BYTES,
    "new_bytes": homes.CHUNK_BYTES,
}
THAWED = {
    "session_id": "talk",
    "cache_salt": "cwm-…",
    "window_name": "stem",
    "token_count": 778,
    "restorable_tokens": 768,
    "restored_by_tier": {"disk": 768},
    "restoration_time_ms": 1.5,
    "partial": False,
    "warning": None,
    "recompute_is_faster": None,
}
CLONED = {"source_window": "stem", "target_window": "idea-b", "shared_blocks": 3, "new_bytes": 0}
ANSWERS: dict[str, dict[str, Any]] = {"FREEZE": {**FROZEN, **STEM}, "THAW": THAWED, "CLONE": CLONED}


def shown(command: str) -> list[str]:
    """Return the lines that README shows under `$ command`, without the `…` that stands for more."""
    after = (ROOT / "README.md").read_text().split(f"    $ {command}\n", 1)[1].splitlines()
    lines = [line.strip() for line in itertools.takewhile(lambda line: line.startswith("    "), after)]
    return [line for line in lines if line != "…"]


async def printed_by(*words: str) -> list[str]:
    """Run `cwm` with the words and return the lines that it prints, without spaces at their ends."""
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cwm_mcp.cli", *words, cwd=ROOT, stdout=-1, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    printed, _ = await run.communicate()
    assert run.returncode == 0
    return [line.strip() for line in printed.decode().splitlines()]


async def test_readme_shows_what_cwm_ls_prints(filled: Path) -> None:
    assert await printed_by("ls") == shown("cwm ls")


@pytest.mark.parametrize("command", ["cwm freeze talk stem --tag project-x", "cwm thaw stem", "cwm clone stem idea-b"])
async def test_readme_shows_what_the_command_prints(filled: Path, settings: Settings, command: str) -> None:
    async with canned_engine(settings, **ANSWERS):
        printed = await printed_by(*command.split()[1:])
    lines = shown(command)
    assert lines
    assert [line for line in printed if line in lines] == lines
