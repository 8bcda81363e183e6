"""The real Codex, run by `codex exec` in a home of its own, over /v1/responses."""

import json
import os
from pathlib import Path
from typing import ClassVar

from tests.support.clients.base import Said, events, run_client
from tests.support.clients.npm import installed

_PACKAGE = "@openai/codex"
_VERSION = "0.171.0"
_BINARY = "@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex"
_CONFIG = """
model = "{model}"
model_provider = "local"
model_context_window = 100000
model_instructions_file = "{home}/instructions.md"
include_permissions_instructions = false
include_apps_instructions = false
include_environment_context = false
include_collaboration_mode_instructions = false
web_search = "disabled"
approval_policy = "never"
sandbox_mode = "read-only"
check_for_update_on_startup = false

[agents]
enabled = false

[features]
goals = false
shell_tool = false
unified_exec = false
apps = false
plugins = false
hooks = false
tool_suggest = false
skill_search = false
image_generation = false
code_mode_host = false

[skills]
include_instructions = false

[skills.bundled]
enabled = false

[analytics]
enabled = false

[model_providers.local]
name = "local"
base_url = "{url}/v1"
wire_api = "responses"
"""
"""Without these switches its instructions and tools are 11,000 tokens, more than the small model has room for."""


class Codex:
    """Codex with short instructions and few tools. Not for concurrent turns."""

    name: ClassVar[str] = "codex"
    identified: ClassVar[bool] = True
    rewritten_tokens: ClassVar[int] = 0

    def __init__(self, home: Path, url: str, model: str) -> None:
        self._binary = installed("codex", {_PACKAGE: _VERSION}) / _BINARY
        self._home = home
        self._reported: dict[str, tuple[int, int]] = {}
        (home / ".codex").mkdir()
        (home / ".codex" / "config.toml").write_text(_CONFIG.format(home=home, url=url, model=model))
        (home / "instructions.md").write_text("helpful")

    async def say(self, words: str, resumed: str | None = None) -> Said:
        resume = () if resumed is None else ("resume", resumed)
        command = (str(self._binary), "exec", *resume, "--skip-git-repo-check", "--json", "-")
        out = await run_client(command, self._home, {"PATH": os.environ["PATH"]}, words)
        thread, text, usage = "", "", (0, 0)
        for event in events(out):
            if event["type"] == "thread.started":
                thread = event["thread_id"]
            elif event["type"] == "item.completed" and event["item"]["type"] == "agent_message":
                text = event["item"]["text"]
            elif event["type"] == "turn.completed":
                usage = event["usage"]["cached_input_tokens"], event["usage"]["input_tokens"]
            elif event["type"] in ("turn.failed", "error"):
                raise RuntimeError(json.dumps(event))
        before = self._reported.get(thread, (0, 0))  # it reports the sum over the conversation's turns
        self._reported[thread] = usage
        return Said(thread, text, usage[0] - before[0], usage[1] - before[1])
