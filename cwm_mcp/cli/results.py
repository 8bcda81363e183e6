"""Results that only commands have."""

import msgspec

from cwm_connector.protocol.results import Deleted


class Removed(msgspec.Struct, frozen=True):
    """Windows that one `cwm rm` has deleted."""

    windows: list[Deleted]
    space_freed_bytes: int
