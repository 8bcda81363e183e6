"""Names and tags for the shell's completion, which has no time for the rest of the catalog.

They are read without a check of the rows. A damaged name would be a wrong proposal, and the command that gets it
checks it.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

_NAMES: Final = "SELECT name FROM windows ORDER BY created_at DESC, id DESC LIMIT ?"
_DELETED: Final = "SELECT name FROM trash GROUP BY name ORDER BY max(trashed_at) DESC LIMIT ?"
_TAGS: Final = """
    SELECT DISTINCT tag FROM window_tags WHERE window_id IN
        (SELECT id FROM windows ORDER BY created_at DESC, id DESC LIMIT ?) ORDER BY tag
"""


def newest_names(path: Path, limit: int) -> list[str]:
    """Return the names of the newest windows. Raises: sqlite3.Error for a file that can't be read."""
    return _read(path, _NAMES, limit)


def deleted_names(path: Path, limit: int) -> list[str]:
    """Return the names of the windows in the trash, the last one deleted first. Raises: as `newest_names`."""
    return _read(path, _DELETED, limit)


def tags_of_newest(path: Path, limit: int) -> list[str]:
    """Return the tags of the newest windows in alphabetical order. Raises: as `newest_names`."""
    return _read(path, _TAGS, limit)


def _read(path: Path, statement: str, limit: int) -> list[str]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        return [str(value) for (value,) in db.execute(statement, (limit,))]
