"""The real Qwen Code, run without a terminal in a home of its own, over /v1/chat/completions, without any identity."""

import json
from pathlib import Path
from typing import ClassVar

from tests.support.clients.base import Said, run_client
from tests.support.clients.npm import installed, node_folder, node_path

_PACKAGE = "@qwen-code/qwen-code"
_VERSION = "0.24.4"
_TOOLS = "edit,notebook_edit,read_file,run_shell_command,write_file"
_SHORT = ("--bare", "--core-tools", "none", "--exclude-tools", _TOOLS, "--system-prompt", "helpful")


class QwenCode:
    """Qwen Code with a short prompt and no tools.

    It does not save the reminders that it glues to a user's message. The last message of the last turn therefore
    reads otherwise after it has resumed.
    """

    name: ClassVar[str] = "qwen-code"
    identified: ClassVar[bool] = False
    rewritten_tokens: ClassVar[int] = 320

    def __init__(self, home: Path, url: str, model: str) -> None:
        script = installed("qwen-code", {_PACKAGE: _VERSION}) / _PACKAGE / "cli.js"
        self._command = (str(node_folder() / "node"), str(script), "--auth-type", "openai", "--output-format", "json")
        self._variables = {
            "PATH": node_path(),
            "OPENAI_API_KEY": "dummy",
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_MODEL": model,
            "QWEN_CODE_MAX_OUTPUT_TOKENS": "64",
        }
        self._home = home
        (home / ".qwen").mkdir()
        settings = {
            "telemetry": {"enabled": False},
            "privacy": {"usageStatisticsEnabled": False},
            "general": {"enableAutoUpdate": False},
            "memory": {"enableManagedAutoMemory": False},
            "model": {"generationConfig": {"samplingParams": {"max_tokens": 64}}},
        }
        (home / ".qwen" / "settings.json").write_text(json.dumps(settings))

    async def say(self, words: str, resumed: str | None = None) -> Said:
        resume = () if resumed is None else ("--resume", resumed)
        out = await run_client((*self._command, *_SHORT, *resume, "--prompt", words), self._home, self._variables)
        told = json.loads(out)
        (answer,) = [event["message"] for event in told if event["type"] == "assistant"]
        text = "".join(part.get("text", "") for part in answer["content"])
        usage = answer["usage"]
        return Said(told[0]["session_id"], text, usage.get("cache_read_input_tokens", 0), usage["input_tokens"])
