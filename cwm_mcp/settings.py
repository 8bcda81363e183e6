"""Read and check the settings of a client process. A client creates no folders. Only the engine does."""

from pathlib import Path
from urllib.parse import urlsplit

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import is_writable
from cwm_connector.settings import Settings, load_settings


def client_settings() -> Settings:
    """Return the settings from the environment.

    Raise `Code.ARGUMENT` for an invalid setting, which includes a home that this user cannot write to.
    """
    settings = load_settings()
    nearest = next(folder for folder in (settings.home, *settings.home.parents) if _exists(folder))
    if not nearest.is_dir() or not is_writable(nearest):
        # Even reading needs it, because SQLite creates the index of its log beside the catalog.
        if not nearest.is_dir():
            raise CWMError(Code.ARGUMENT, f"CWM_HOME is {settings.home}, but {nearest} is not a folder", setting="home")
        raise CWMError(
            Code.ARGUMENT,
            f"CWM_HOME is {settings.home}, but this user cannot write to {nearest}; choose another folder",
            setting="home",
        )
    return settings


def http_token_path(settings: Settings) -> Path:
    """Return the file that holds the token of the MCP server over HTTP, if CWM_HTTP_TOKEN does not give one."""
    return settings.home / "http-token"


def _exists(path: Path) -> bool:
    """Return whether the path exists. Return False if a parent is a file or a folder that this user cannot enter."""
    try:
        return path.exists()
    except OSError:
        return False


def without_secrets(url: str) -> str:
    """Return only the scheme, host and path of a URL. User, password, query and fragment may be secret."""
    parts = urlsplit(url)
    hidden = "***@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{hidden}{parts.netloc.rpartition('@')[2]}{parts.path}"
