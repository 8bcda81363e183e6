"""The real pi, run by `pi --print` in a home of its own, over /v1/chat/completions and without any identity."""

import json
from pathlib import Path
from typing import ClassVar

from tests.support.clients.base import Said, events, run_client
from tests.support.clients.npm import installed, node_folder, node_path

_PACKAGE = "@mariozechner/pi-coding-agent"
_VERSION = "0.73.1"
_SHORT = ("--no-tools", "--no-extensions", "--no-skills", "--no-context-files", "--system-prompt", "helpful")


class Pi:
    """pi with a short prompt and no tools. In its default settings a chat request carries no id."""

    name: ClassVar[str] = "pi"
    identified: ClassVar[bool] = False
    rewritten_tokens: ClassVar[int] = 0

    def __init__(self, home: Path, url: str, model: str) -> None:
        script = installed("pi", {_PACKAGE: _VERSION}) / _PACKAGE / "dist" / "cli.js"
        self._command = (str(node_folder() / "node"), str(script), "--print", "--mode", "json", *_SHORT)
        self._model = ("--provider", "local", "--model", model)
        self._home = home
        folder = home / ".pi" / "agent"
        folder.mkdir(parents=True)
        entry = {"id": model, "contextWindow": 100_000, "maxTokens": 64, "compat": {"maxTokensField": "max_tokens"}}
        provider = {"baseUrl": f"{url}/v1", "api": "openai-completions", "apiKey": "dummy", "models": [entry]}
        (folder / "models.json").write_text(json.dumps({"providers": {"local": provider}}))

    async def say(self, words: str, resumed: str | None = None) -> Said:
        resume = () if resumed is None else ("--session", resumed)
        command = (*self._command, *self._model, *resume, words)
        out = await run_client(command, self._home, {"PATH": node_path(), "PI_OFFLINE": "1"})
        session, text, read, prompt = "", "", 0, 0
        for event in events(out):
            if event["type"] == "session":
                session = event["id"]
            elif event["type"] == "message_end" and event["message"]["role"] == "assistant":
                message = event["message"]
                if message["stopReason"] == "error":
                    raise RuntimeError(message["errorMessage"])
                text = "".join(part["text"] for part in message["content"])
                read, prompt = message["usage"]["cacheRead"], message["usage"]["input"] + message["usage"]["cacheRead"]
        return Said(session, text, read, prompt)
