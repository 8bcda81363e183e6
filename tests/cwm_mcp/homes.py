"""Write a CWM_HOME with a catalog that an engine could have left behind, for tests without an engine."""

from collections.abc import Sequence
from pathlib import Path

from cwm_connector.catalog.base import (
    ChunkRow,
    NewWindow,
)
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.types import ChunkKey, Micros
from cwm_connector.settings import Settings

CHUNK_TOKENS = 256
CHUNK_BYTES = 4096
NEW_YEAR = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z in microseconds."""


def new_window(
    name: str, session_id: str, chunks: int, *, tags: Sequence[str] = (), parent: str | None = None, day: int = 0
) -> NewWindow:
    """Return a window of the first `chunks` chunks of one conversation and ten more tokens, frozen on `day`."""
    keys = [ChunkKey(bytes([number]) * 32) for number in range(chunks)]
    return NewWindow(
        name=name,
        description=f"the {name} window",
        tags=tags,
        model="SmolLM2-135M-Instruct",
        passport={"format": "1"},
        session_id=session_id,
        head="",
        parent=parent,
        token_ids=bytes(4 * (chunks * CHUNK_TOKENS + 10)),
        restorable_tokens=chunks * CHUNK_TOKENS,
        chunks=keys,
        stored=[ChunkRow(key, CHUNK_TOKENS, CHUNK_BYTES) for key in keys],
        created_at=Micros(NEW_YEAR + day * 86_400_000_000),
    )


def fill(home: Path) -> None:
    """Write two windows of one session that share three chunks, and a clone."""
    catalog = SqliteCatalog.open(Settings(home=home).catalog_path)
    catalog.commit_window(new_window("stem", "talk", 3, tags=["project-x"]))
    catalog.commit_window(new_window("branch", "talk", 5, tags=["project-x", "debug"], parent="stem", day=1))
    catalog.clone_window("stem", "stem-for-alice", "for Alice", None, Micros(NEW_YEAR + 2 * 86_400_000_000))
    catalog.close()


def clones(home: Path, source: str, count: int) -> None:
    """Add `count` clones of a window with long descriptions. The oldest is clone-0."""
    catalog = SqliteCatalog.open(Settings(home=home).catalog_path)
    for number in range(count):
        catalog.clone_window(source, f"clone-{number}", "why " * 50, None, Micros(NEW_YEAR + number))
    catalog.close()
