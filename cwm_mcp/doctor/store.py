"""CWM_HOME, the room on its disk, and the catalog: looked at from here, never written."""

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from cwm_connector.catalog.base import CatalogTotals
from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import TierName
from cwm_connector.settings import GIB, Settings
from cwm_mcp.doctor.report import Check


def home(settings: Settings) -> Check:
    path = settings.home
    if not path.exists():
        return Check(name="home", status="ok", message=f"{path} is made at the engine's first start")
    about, quoted = path.stat(), shlex.quote(str(path))
    if about.st_uid != os.getuid():
        message = f"{path} belongs to user {about.st_uid}, this is user {os.getuid()}"
        return Check(name="home", status="error", message=message, next=f"sudo chown -R {os.getuid()} {quoted}")
    if about.st_mode & 0o077:
        message = f"{path} has mode {about.st_mode & 0o777:o}: other users can get at your conversations"
        return Check(name="home", status="warning", message=message, next=f"chmod 700 {quoted}")
    return Check(name="home", status="ok", message=f"{path}, yours alone")


def disk(settings: Settings, totals: CatalogTotals | None) -> Check:
    """Whether the limit that is set fits on the disk, what is stored already counted in."""
    folder = next(path for path in (settings.chunks_path, *settings.chunks_path.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    held = totals.tiers.get(TierName.DISK) if totals is not None else None
    room, limit = free + (held.stored_bytes if held is not None else 0), settings.disk_cache_bytes
    message = f"{free / GIB:.1f} GiB free in {folder}, CWM_DISK_CACHE_GB is {settings.disk_cache_gb:g}"
    if room >= limit:
        return Check(name="disk", status="ok", message=message)
    fitting = max(1, int(room * 0.9 / GIB))
    return Check(
        name="disk",
        status="error" if free < GIB else "warning",
        message=f"{message}: the disk is full before that",
        next=f"export CWM_DISK_CACHE_GB={fitting}",
    )


def catalog(settings: Settings, read: Callable[[], CatalogTotals]) -> tuple[Check, CatalogTotals | None]:
    """The check, and the totals that it has read."""
    path: Path = settings.catalog_path
    if not path.exists():
        return Check(name="catalog", status="ok", message=f"{path} is made at the engine's first start"), None
    try:
        totals = read()
    except CWMError as problem:
        # Never to be deleted on a doctor's word: looking at it is the next step, and the message says what then.
        look = f"ls -l {shlex.quote(str(path.parent))}"
        return Check(name="catalog", status="error", message=str(problem), next=look), None
    return Check(name="catalog", status="ok", message=f"{totals.windows} windows, {totals.chunks} blocks"), totals
