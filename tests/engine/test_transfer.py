"""A window that was exported, deleted and imported again is the same to a real model."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.chunks import stored_bytes
from tests.support.engine import ROOT, Engine
from tests.support.mcp_client import mcp_client
from tests.support.talk import talked


async def cwm(engine: Engine, *words: str, folder: Path) -> dict[str, Any]:
    """The command line's own process, in a folder that is not the engine's."""
    command = [sys.executable, "-m", "cwm_mcp.cli", *words, "--json"]
    environment = engine.environment() | {"PYTHONPATH": str(ROOT)}
    ended = await asyncio.to_thread(
        subprocess.run, command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


async def test_an_imported_window_restores_every_block_and_the_tokens_are_equal(engine: Engine, tmp_path: Path) -> None:
    talk = await talked(engine.api, "exporter", 470, tokens=504)
    full = talk.full_blocks(await engine.api.block_tokens())
    async with mcp_client(engine) as tools:
        frozen = await tools.call("window_freeze", session_id="exporter", window_name="to-hand-on")
        uninterrupted = await talk.branch("exporter").say(talk.cue(), logprobs=5)
        exported = await cwm(engine, "export", "to-hand-on", "-o", "w.cwm", folder=tmp_path)
        assert exported["bytes"] == (tmp_path / "w.cwm").stat().st_size > frozen["total_size_bytes"]
        await tools.call("window_delete", window_name="to-hand-on", force=True)
        before = stored_bytes(engine.home)
        imported = await cwm(engine, "import", "w.cwm", "--name", "handed-on", folder=tmp_path)
        assert (imported["chunks"], imported["shared_chunks"]) == (frozen["block_count"], 0)
        assert stored_bytes(engine.home) - before == imported["new_bytes"] == frozen["total_size_bytes"]
        thawed = await tools.call("window_thaw", window_name="handed-on", new_session_id="colleague")
        assert not thawed["partial"] and thawed["restorable_tokens"] == frozen["captured_tokens"]
    heard = await talk.branch("colleague", thawed["cache_salt"]).say(talk.cue(), logprobs=5)
    assert heard.restored >= full
    assert heard.completion.token_ids == uninterrupted.completion.token_ids
    assert heard.completion.top_logprobs == uninterrupted.completion.top_logprobs
