"""The real opencode, run by `opencode run` in a home of its own, over /v1/chat/completions."""

import json
import os
from pathlib import Path
from typing import ClassVar

from tests.support.clients.base import Said, events, run_client
from tests.support.clients.npm import installed

_PACKAGE = "opencode-linux-x64"
_VERSION = "1.18.33"


class OpenCode:
    """opencode with an agent of a short prompt and no tools. Its title request goes out beside the first turn."""

    name: ClassVar[str] = "opencode"
    identified: ClassVar[bool] = True
    rewritten_tokens: ClassVar[int] = 0

    def __init__(self, home: Path, url: str, model: str) -> None:
        self._binary = installed("opencode", {_PACKAGE: _VERSION}) / _PACKAGE / "bin" / "opencode"
        self._home = home
        folder = home / ".config" / "opencode"
        folder.mkdir(parents=True)
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "name": "local",
            "options": {"baseURL": f"{url}/v1", "apiKey": "dummy"},
            "models": {model: {"name": model, "limit": {"context": 100_000, "output": 64}}},
        }
        config = {
            "autoupdate": False,
            "share": "disabled",
            "snapshot": False,
            "model": f"local/{model}",
            "small_model": f"local/{model}",
            "provider": {"local": provider},
            "agent": {"short": {"mode": "primary", "prompt": "helpful", "tools": {"*": False}}},
        }
        (folder / "opencode.json").write_text(json.dumps(config))

    async def say(self, words: str, resumed: str | None = None) -> Said:
        resume = () if resumed is None else ("--session", resumed)
        command = (str(self._binary), "run", "--agent", "short", "--format", "json", *resume)
        out = await run_client(command, self._home, {"PATH": os.environ["PATH"]}, words)
        session, text, read, prompt = "", "", 0, 0
        for event in events(out):
            session = event["sessionID"]
            if event["type"] == "text":
                text += event["part"]["text"]
            elif event["type"] == "step_finish":
                tokens = event["part"]["tokens"]
                read, prompt = tokens["cache"]["read"], tokens["input"] + tokens["cache"]["read"]
            elif event["type"] == "error":
                raise RuntimeError(json.dumps(event))
        return Said(session, text, read, prompt)
