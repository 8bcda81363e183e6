"""The real Claude Code, from npm, run offline in an environment of its own against the engine of a test."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.engine import ROOT

PACKAGE: Final = "@anthropic-ai/claude-code"
PLUGIN: Final = ROOT / "cwm_mcp" / "plugin"
INSTALL_S: Final = 300
_FOLDER: Final = ROOT / "build" / "claude-code"
_BINARY: Final = _FOLDER / "node_modules" / f"{PACKAGE}-linux-x64" / "claude"
_QUIET: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "NO_COLOR": "1",
}


def claude_binary() -> Path:
    """The program, installed once into build/. Skips the test, saying why, where npm does not offer it."""
    if _BINARY.exists():
        return _BINARY
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"there is no npm to install {PACKAGE} with")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    quiet = ("--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error")
    try:
        ran = subprocess.run(
            [npm, "install", "--prefix", str(_FOLDER), *quiet, PACKAGE],
            cwd=_FOLDER, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {PACKAGE} within {INSTALL_S} s")
    if ran.returncode != 0 or not _BINARY.exists():
        pytest.skip(f"npm does not offer {PACKAGE} for linux-x64 here: {ran.stderr.strip()[-200:]}")
    return _BINARY


@dataclass(frozen=True, slots=True)
class Said:
    """What a run with `--output-format json` answered."""

    session_id: str
    text: str
    cache_read_tokens: int
    """As vLLM told Claude Code."""
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ClaudeCode:
    """A home of its own, so that sessions can be resumed; `variables` are further ones, for hooks and MCP servers."""

    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    async def run(self, *arguments: str, limit_s: float = 180, may_fail: bool = False) -> str:
        """Its standard output. Raises: RuntimeError with everything it said where it fails, unless it may."""
        process = await asyncio.create_subprocess_exec(
            str(claude_binary()), *arguments,
            cwd=self.home, env={"PATH": os.environ["PATH"], "HOME": str(self.home), **_QUIET, **self.variables},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(limit_s):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0 and not may_fail:
            raise RuntimeError(f"claude ended with {process.returncode}: {out.decode()} {err.decode()}")
        return out.decode()

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator["asyncio.Task[str]"]:
        """Run it, however it ends, beside the body; end it with the body at the latest."""
        task = asyncio.create_task(self.run(*arguments, may_fail=True))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def say(self, words: str, *arguments: str) -> Said:
        """One turn with no tools and a short system prompt, which the small model has room for."""
        short = ("--tools", "", "--system-prompt", "helpful", "--output-format", "json")
        told = json.loads(await self.run("-p", words, *short, *arguments))
        usage: dict[str, Any] = told["usage"]
        read, made, rest = (int(usage[f"{name}input_tokens"] or 0) for name in ("cache_read_", "cache_creation_", ""))
        return Said(told["session_id"], told["result"], read, read + made + rest)


def against(url: str, model: str) -> dict[str, str]:
    """The variables that send Claude Code to vLLM."""
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "dummy",
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "256",
        # A small model rambles on, and Claude Code asks again where an answer is cut off: let a sentence be enough.
        "CLAUDE_CODE_EXTRA_BODY": '{"temperature": 0, "stop_sequences": ["."]}',
    }


def plugin_arguments() -> Sequence[str]:
    return ("--plugin-dir", str(PLUGIN))
