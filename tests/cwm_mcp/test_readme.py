"""The outputs that README shows are what the commands print. tests/engine/test_documents.py runs them all."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.settings import Settings
from tests.cwm_mcp import homes
from tests.cwm_mcp.canned import FROZEN, canned_engine
from tests.support.console import is_shown, steps

ROOT = Path(__file__).resolve().parents[2]
STEM = {
    "window_name": "stem",
    "session_id": "talk",
    "token_count": 236,
    "captured_tokens": 128,
    "block_count": 1,
    "total_size_bytes": 5_898_240,
    "new_bytes": 5_898_240,
}
THAWED = {
    "session_id": "talk",
    "cache_salt": "cwm-…",
    "window_name": "stem",
    "token_count": 236,
    "restorable_tokens": 128,
    "restored_by_tier": {"cpu": 128},
    "restoration_time_ms": 1.5,
    "partial": False,
    "warning": None,
    "recompute_is_faster": None,
}
CLONED = {"source_window": "stem", "target_window": "idea-b", "shared_blocks": 1, "new_bytes": 0}
ANSWERS: dict[str, dict[str, Any]] = {"FREEZE": {**FROZEN, **STEM}, "THAW": THAWED, "CLONE": CLONED}


def shown(command: str) -> tuple[str, ...]:
    """Return the lines that README shows under the command."""
    (step,) = (each for each in steps(ROOT / "README.md") if each.command == command)
    assert step.shown
    return step.shown


async def printed_by(*words: str) -> tuple[str, ...]:
    """Run `cwm` with the words and return the lines that it prints, without spaces at their ends."""
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cwm_mcp.cli", *words, cwd=ROOT, stdout=-1, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    printed, _ = await run.communicate()
    assert run.returncode == 0
    return tuple(line.strip() for line in printed.decode().splitlines())


async def test_readme_shows_what_cwm_ls_prints(home: Path, settings: Settings) -> None:
    catalog = SqliteCatalog.open(settings.catalog_path)
    catalog.commit_window(homes.new_window("stem", "talk", 1, tags=["canals"]))
    catalog.close()
    assert is_shown(shown("cwm ls --tag canals"), await printed_by("ls", "--tag", "canals"))


@pytest.mark.parametrize("command", ["cwm freeze talk stem --tag canals", "cwm thaw stem", "cwm clone stem idea-b"])
async def test_readme_shows_what_the_command_prints(filled: Path, settings: Settings, command: str) -> None:
    async with canned_engine(settings, **ANSWERS):
        printed = await printed_by(*command.split()[1:])
    first, *_ = lines = shown(command)
    assert printed[0] == first
    assert is_shown(lines, printed)
