"""The results of the trash's operations. Times are as in `results.py`."""

import msgspec

from cwm_connector.protocol.results import Answer


class Trashed(Answer, frozen=True):
    """A window that can be brought back until `kept_until`. None: it is gone for good, and its space is free."""

    window_name: str
    kept_until: str | None
    space_freed_bytes: int


class Restored(Answer, frozen=True):
    """Windows that came back."""

    window_names: list[str]


class TrashItem(msgspec.Struct, frozen=True):
    """A window in the trash."""

    window_name: str
    token_count: int
    size_bytes: int
    deleted_at: str
    kept_until: str


class TrashList(Answer, frozen=True):
    """The trash, the newest first."""

    windows: list[TrashItem]
