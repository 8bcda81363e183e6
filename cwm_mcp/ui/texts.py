"""Read a page of a window's conversation, for people who want to look before a thaw or a deletion."""

from typing import Final

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_mcp.api.operations import Operations

PAGE_TOKENS: Final = 400
"""A few screens of text. vLLM turns them into text in milliseconds."""
_WITHOUT_TEXT: Final = (Code.ENGINE_UNREACHABLE, Code.ENGINE_TIMEOUT, Code.BACKEND)


class TextPage(msgspec.Struct, frozen=True):
    """Tokens `first` up to `end` of a window. Without vLLM there are token ids instead of text."""

    token_count: int
    first: int
    end: int
    text: str | None
    token_ids: list[int] | None
    """Given only where there is no text."""
    text_missing: str | None
    """Why there is no text."""


async def text_page(operations: Operations, name: str, first: int) -> TextPage:
    """Return the page that begins with the token `first`, or the last page if that is behind the window's end.

    Raise `Code.WINDOW_NOT_FOUND` for an unknown window, and the errors of reading the engine or the catalog.
    """
    ids = await operations.token_ids(name)
    start = max(0, min(first, len(ids) - PAGE_TOKENS))
    part = list(ids[start : start + PAGE_TOKENS])
    text, missing = None, None
    try:
        text = await operations.text_of(part) if part else ""
    except CWMError as problem:
        if problem.code not in _WITHOUT_TEXT:
            raise
        missing = problem.message
    return TextPage(
        token_count=len(ids),
        first=start,
        end=start + len(part),
        text=text,
        token_ids=None if missing is None else part,
        text_missing=missing,
    )
