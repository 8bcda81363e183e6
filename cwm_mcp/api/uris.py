"""The addresses of what can be read as an MCP resource. A window's name needs no escaping in them."""

from typing import Final

WINDOWS: Final = "windows://list"
SESSIONS: Final = "sessions://list"
WINDOW: Final = "window://{name}"
TOKENS: Final = "window://{name}/tokens"
TRANSCRIPT: Final = "window://{name}/transcript"


def window_uri(name: str) -> str:
    return WINDOW.format(name=name)


def tokens_uri(name: str) -> str:
    return TOKENS.format(name=name)


def transcript_uri(name: str) -> str:
    return TRANSCRIPT.format(name=name)
