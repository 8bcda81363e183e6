"""What a power cut must not take back: contents, and names, of which a file's own fsync says nothing.

Called at the start of a process, from any thread; may block on the disk.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's entries, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_way_to(folder: Path) -> None:
    """Makes the folder's own name durable, and its parents', whoever made them: up to the file system's root.

    Ends below a parent that this user may not read: then it is not one that was made just now. Raises OSError.
    """
    for here, parent in zip((folder, *folder.parents), folder.parents, strict=False):
        if os.path.ismount(here):
            return
        try:
            sync(parent)
        except PermissionError:
            return
