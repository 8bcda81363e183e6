"""The results that only a front end has. Those of the operations are in cwm_connector/protocol/results.py."""

from typing import Annotated

from msgspec import Meta

from cwm_connector.protocol.results import Answer


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
    children: Annotated[list[str], Meta(description="The first ones.")]
    child_count: int
    tokens_uri: str
    transcript_uri: str
