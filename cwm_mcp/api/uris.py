"""The addresses of what can be read as an MCP resource. Letters beyond ASCII are escaped in them, as in any URL."""

from typing import Final
from urllib.parse import quote

WINDOWS: Final = "windows://list"
SESSIONS: Final = "sessions://list"
WINDOW: Final = "window://{name}"
TOKENS: Final = "window://{name}/tokens"
TRANSCRIPT: Final = "window://{name}/transcript"


def window_uri(name: str) -> str:
    return WINDOW.format(name=quote(name, safe=""))


def tokens_uri(name: str) -> str:
    return TOKENS.format(name=quote(name, safe=""))


def transcript_uri(name: str) -> str:
    return TRANSCRIPT.format(name=quote(name, safe=""))
