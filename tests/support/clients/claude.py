"""Claude Code as one of the clients, without the plugin, over /v1/messages."""

from pathlib import Path
from typing import ClassVar

from tests.support.claude_code import ClaudeCode, against, claude_binary
from tests.support.clients.base import Said


class Claude:
    """Claude Code with a short prompt and no tools, and nothing of CWM's in it."""

    name: ClassVar[str] = "claude-code"
    identified: ClassVar[bool] = True
    rewritten_tokens: ClassVar[int] = 0

    def __init__(self, home: Path, url: str, model: str) -> None:
        claude_binary()
        self._claude = ClaudeCode(home, against(url, model))

    async def say(self, words: str, resumed: str | None = None) -> Said:
        return await self._claude.say(words, *(() if resumed is None else ("--resume", resumed)))
