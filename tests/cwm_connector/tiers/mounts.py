"""Real file systems for the disk tests: small ones that fill up, one without direct I/O, one that hangs."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _run(*command: str) -> None:
    """Skips the test, by name, where this user or machine can't do it."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{command[0]} is not possible here: {done.stderr.partition(chr(10))[0]}")


@contextmanager
def mounted(kind: str, at: Path, size_mib: int = 0) -> Iterator[Path]:
    """An empty folder on a fresh tmpfs or ext4 of `size_mib`, or on a ramfs."""
    at.mkdir()
    if kind == "ext4":
        image = at.with_suffix(".image")
        with image.open("wb") as file:
            file.truncate(size_mib << 20)
        _run("mkfs.ext4", "-q", "-F", str(image))
        _run("mount", "-o", "loop", str(image), str(at))
    else:
        size = ["-o", f"size={size_mib}m"] if size_mib else []
        _run("mount", "-t", kind, *size, kind, str(at))
    try:
        folder = at / "chunks"
        folder.mkdir()
        yield folder
    finally:
        subprocess.run(["umount", str(at)], check=True)


@contextmanager
def read_only(mount: Path) -> Iterator[None]:
    """Nothing can be written to the file system meanwhile: who tries is refused."""
    _run("mount", "-o", "remount,ro", str(mount))
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)


@contextmanager
def frozen(mount: Path) -> Iterator[None]:
    """Nothing can be written to the file system meanwhile: who tries hangs in the kernel."""
    _run("fsfreeze", "--freeze", str(mount))
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(mount)], check=True)
