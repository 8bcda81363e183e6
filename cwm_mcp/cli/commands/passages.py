"""Read a part of a window as text, for people who want to look before a thaw or a deletion."""

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_mcp.api.operations import Operations


class WindowText(msgspec.Struct, frozen=True):
    """A part of a window's conversation. Without vLLM it is token ids."""

    window_name: str
    token_count: int
    first: int
    """The number of the first token that is shown, from 0."""
    end: int
    """The number after that of the last one."""
    text: str | None
    token_ids: list[int] | None
    """Given only where there is no text."""
    text_missing: str | None
    """Why there is no text."""


async def read_text(operations: Operations, window_name: str, first: int, end: int | None) -> WindowText:
    """Return the tokens from `first` up to `end` as text. A negative number counts from the window's end."""
    ids = await operations.token_ids(window_name)
    start, stop, _ = slice(first, end).indices(len(ids))
    part = list(ids[start:stop])
    text, missing = "", None
    if part:
        try:
            text = await operations.text_of(part)
        except CWMError as problem:
            if problem.code not in (Code.ENGINE_UNREACHABLE, Code.ENGINE_TIMEOUT, Code.BACKEND):
                raise
            missing = problem.message
    return WindowText(
        window_name=window_name,
        token_count=len(ids),
        first=start,
        end=max(start, stop),
        text=text if missing is None else None,
        token_ids=part if missing is not None else None,
        text_missing=missing,
    )
