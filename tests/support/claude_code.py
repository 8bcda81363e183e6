"""The real Claude Code, from npm, run offline in an environment of its own against the engine of a test."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.clients.base import Said
from tests.support.clients.npm import installed
from tests.support.paths import ROOT

PACKAGE: Final = "@anthropic-ai/claude-code"
PLUGIN: Final = ROOT / "cwm_mcp" / "plugin"
_VERSION: Final = "2.1.332"
_QUIET: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "NO_COLOR": "1",
}


def claude_binary() -> Path:
    """Return the program, installed once into build/. Skip the test, saying why, where npm does not offer it."""
    return installed("claude-code", {PACKAGE: _VERSION}) / f"{PACKAGE}-linux-x64" / "claude"


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
