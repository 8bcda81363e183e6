"""Check CWM_HOME, the free space on its disk, and the catalog, without writing anything."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from cwm_connector.catalog.base import CatalogTotals
from cwm_connector.core.errors import CWMError
from cwm_connector.core.folders import free_bytes, free_space
from cwm_connector.core.types import TierName
from cwm_connector.core.units import GIB
from cwm_connector.settings import Settings
from cwm_mcp.doctor.report import Check
from cwm_mcp.settings import http_token_path


def check_home(settings: Settings) -> Check:
    """Check that CWM_HOME belongs to this user and is closed to others."""
    path = settings.home
    if not path.exists():
        return Check(name="home", status="ok", message=f"{path} does not exist yet; the engine creates it")
    about, quoted = path.stat(), shlex.quote(str(path))
    if about.st_uid != os.getuid():
        message = f"{path} belongs to user {about.st_uid}, but you are user {os.getuid()}"
        return Check(name="home", status="error", message=message, next=f"sudo chown -R {os.getuid()} {quoted}")
    if about.st_mode & 0o077:
        message = f"{path} has mode {about.st_mode & 0o777:o}, so other users can access your conversations"
        return Check(name="home", status="warning", message=message, next=f"chmod 700 {quoted}")
    return Check(name="home", status="ok", message=f"{path} is private to you")


def check_http_token(settings: Settings) -> Check:
    """Check who can read the token of the MCP server over HTTP, and show where it is but never the token itself."""
    if os.environ.get("CWM_HTTP_TOKEN"):
        message = "CWM_HTTP_TOKEN holds the token for MCP over HTTP"
        return Check(name="http token", status="ok", message=message)
    path = http_token_path(settings)
    if not path.exists():
        return Check(
            name="http token", status="ok", message=f"{path} does not exist yet; python -m cwm_mcp --http makes it"
        )
    mode = path.stat().st_mode & 0o777
    message = f"{path} holds the token for MCP over HTTP, mode {mode:o}"
    if not mode & 0o077:
        return Check(name="http token", status="ok", message=message)
    # Others may have read it, so another mode alone does not help.
    step = f"rm {shlex.quote(str(path))}  # the next start of the server makes a new one"
    return Check(name="http token", status="error", message=f"{message}, so others can read it", next=step)


def check_disk(settings: Settings, totals: CatalogTotals | None, limit_bytes: int | None = None) -> Check:
    """Check that the disk tier can reach its limit before the disk is full. Stored data counts as available space.

    `limit_bytes` is that of the running engine, and None without one.
    """
    limit = settings.disk_cache_bytes if limit_bytes is None else limit_bytes
    whose = "CWM_DISK_CACHE_GB is" if limit_bytes is None else "the engine's CWM_DISK_CACHE_GB is"
    folder = next(path for path in (settings.chunks_path, *settings.chunks_path.parents) if path.exists())
    free = free_bytes(folder)
    tier = totals.tiers.get(TierName.DISK) if totals is not None else None
    available = free + (tier.stored_bytes if tier is not None else 0)
    message = f"{free_space(folder, free)}, {whose} {limit / GIB:g}"
    if available >= limit:
        return Check(name="disk", status="ok", message=message)
    fitting = int(available * 0.9 / GIB)
    step = f"export CWM_DISK_CACHE_GB={fitting}  # before the engine's next start"
    if not fitting:
        step = f"df -h {shlex.quote(str(folder))}  # free some space, or set CWM_DISK_PATH to a larger disk"
    return Check(
        name="disk",
        status="error" if free < GIB else "warning",
        message=f"{message}, but the disk will be full before that",
        next=step,
    )


def check_catalog(settings: Settings, read_totals: Callable[[], CatalogTotals]) -> tuple[Check, CatalogTotals | None]:
    """Check that the catalog can be read. Return the check and the totals that it read."""
    path: Path = settings.catalog_path
    if not path.exists():
        message = f"{path} does not exist yet; the engine creates it"
        return Check(name="catalog", status="ok", message=message), None
    try:
        totals = read_totals()
    except CWMError as problem:
        # Never suggest to delete the catalog. The message says what to do after looking at it.
        look = f"ls -l {shlex.quote(str(path.parent))}"
        return Check(name="catalog", status="error", message=str(problem), next=look), None
    return Check(name="catalog", status="ok", message=f"{totals.windows} windows, {totals.chunks} chunks"), totals
