"""The results that only a front end has. Those of the operations are in cwm_connector/protocol/results.py."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

from msgspec import Meta

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.results import Answer, ImportOrigin

META_KEY: Final = "cwm/error"
"""The key of an error's fields, in MCP results and on the command line."""
E = TypeVar("E")


def page_of(entries: Sequence[E], offset: int, limit: int | None) -> tuple[list[E], bool]:
    """Return the entries from `offset` on, at most `limit` of them, and whether there are more."""
    end = len(entries) if limit is None else offset + limit
    return list(entries[offset:end]), end < len(entries)


def error_fields(error: CWMError) -> dict[str, Any]:
    """Return the error's code, message and context, and whether the same call may succeed later."""
    return {
        "code": int(error.code),
        "message": error.message,
        "retryable": error.retryable,
        "context": error.context,
    }


class WindowMetadata(Answer, frozen=True):
    """The content of `window://{name}`: a window's entries in list and status, and where its text can be read."""

    name: str
    description: str | None
    tags: list[str]
    model: str | None
    state: str
    session_id: str | None
    token_count: int
    size_bytes: int | None
    unique_bytes: int | None
    storage_tier: str | None
    tiers: dict[str, int] | None
    created_at: str | None
    thawed_at: str | None
    parent_window: str | None
    made_by: str | None
    origin: Annotated[ImportOrigin | None, Meta(description="If it, or what it was cloned from, was imported.")]
    children: Annotated[list[str], Meta(description="The first ones.")]
    child_count: int
    tokens_uri: str
    transcript_uri: str
