"""README's commands and the guide's run line by line as printed, and print what the documents show.

Only the address and the model's name are this engine's. `cwm serve` prints its command, because an engine runs already.
"""

import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.console import is_shown, run, steps
from tests.support.engine import ROOT, SERVED_NAME, Engine, quiet_environment
from tests.support.mcp_client import ToolError, mcp_client

_FROZEN = re.compile(r"cwm (?:freeze|clone) \S+ (\S+)|--name (\S+)|cwm mv \S+ (\S+)")


def adapted(engine: Engine, text: str) -> str:
    """Return the text with this engine's address and model."""
    return text.replace("localhost:8000", engine.url.removeprefix("http://")).replace("Qwen/Qwen3-8B", SERVED_NAME)


async def delete(engine: Engine, commands: list[str]) -> None:
    """Delete the windows that the commands make. Other tests on this engine may use the same names."""
    names = {name for command in commands for found in _FROZEN.findall(command) for name in found if name}
    async with mcp_client(engine) as cwm:
        for name in names:
            with suppress(ToolError):
                await cwm.call("window_delete", window_name=name, force=True)


@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
async def test_the_documents_commands_run_as_printed(engine: Engine, tmp_path: Path, document: str) -> None:
    shown = list(steps(ROOT / document))
    commands = [adapted(engine, step.command) for step in shown]
    settings = {"CWM_HOME": str(engine.home), "CWM_VLLM_URL": engine.url, "PYTHONPATH": str(ROOT)}
    await delete(engine, commands)
    done = run(commands, quiet_environment() | settings, tmp_path)
    await delete(engine, commands)
    wrong = [(step.command, ran) for step, ran in zip(shown, done, strict=True) if ran.code]
    assert wrong == []
    for step, ran in zip(shown, done, strict=True):
        wanted = tuple(adapted(engine, line) for line in step.shown)
        assert not wanted or is_shown(wanted, ran.printed), (step.command, ran.printed)
