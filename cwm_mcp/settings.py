"""The settings of a client process, checked at its start. A client makes no folder: that is the engine's."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.settings import Settings, load_settings


def client_settings() -> Settings:
    """The settings in force. Raises: CWM-1003 for one that can't work, a home that nobody could use included."""
    settings = load_settings()
    nearest = next(folder for folder in (settings.home, *settings.home.parents) if _exists(folder))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        # Reading needs it too: SQLite keeps its log's index beside the catalog.
        raise CWMError(
            Code.ARGUMENT,
            f"CWM_HOME is {settings.home}, but {nearest} can't be written by this user; choose another folder",
            setting="home",
        )
    return settings


def _exists(path: Path) -> bool:
    """False also for what lies under a file, or in a folder that this user can't look into."""
    try:
        return path.exists()
    except OSError:
        return False


def without_secrets(url: str) -> str:
    """A URL's scheme, host and path: user, password, query and fragment may all be secret."""
    parts = urlsplit(url)
    hidden = "***@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{hidden}{parts.netloc.rpartition('@')[2]}{parts.path}"
