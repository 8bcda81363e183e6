"""How much memory this process may use: what the machine has, or less if a control group limits it.

Reads /proc and /sys. Any thread.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

_KIB: Final = 1024
_UNIFIED: Final = ("memory.max", "memory.current", "inactive_file")
_LEGACY: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Names in version 2 and in version 1 of control groups: the limit, the use, and the part of it that can be dropped."""


class Memory(msgspec.Struct, frozen=True):
    """Bytes of memory."""

    total: int
    available: int
    """The part that can be handed out without swapping."""


def read_memory(root: Path = Path("/")) -> Memory:
    """Return the memory of the machine, or of the tightest control group around this process.

    `root` is the folder that holds `proc` and `sys`. A limit that can't be read counts as none.
    Raises: RuntimeError if /proc/meminfo does not say what the machine has.
    """
    machine = _machine(root)
    total, available = machine.total, machine.available
    for folder, (limit_file, usage_file, droppable) in _groups(root):
        limit = _number(folder / limit_file)
        if limit is None:
            continue
        total = min(total, limit)
        used = (_number(folder / usage_file) or 0) - _field(folder / "memory.stat", droppable)
        available = min(available, max(0, limit - max(0, used)))
    return Memory(total, available)


def _machine(root: Path) -> Memory:
    amounts = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        amounts[name] = amount
    try:
        total, available = (int(amounts[name].split()[0]) * _KIB for name in ("MemTotal", "MemAvailable"))
    except KeyError as missing:
        raise RuntimeError(f"/proc/meminfo has no {missing.args[0]}") from None
    return Memory(total, available)


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the folders of this process's memory groups and of all groups around them, with the names of their files.

    In a container the path is often that of the host and is not there. The mounted root is then the container's group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            base, names = mounted, _UNIFIED
        elif "memory" in controllers.split(","):
            base, names = mounted / "memory", _LEGACY
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for each in (group, *group.parents):
            if ".." not in each.parts:
                yield base / each, names


def _number(path: Path) -> int | None:
    """Return the number in the file. None for `max`, and if there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _field(path: Path, name: str) -> int:
    """Return the field of a file that has one name and one number in each line. 0 if it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
