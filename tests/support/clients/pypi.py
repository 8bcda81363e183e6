"""Finds the Python clients that `tools/clients.sh` installs, each in an environment of its own."""

from pathlib import Path

import pytest

from tests.support.paths import ROOT


def program(client: str, name: str, package: str) -> Path:
    """Return a program of the client's environment. Skip the test where the package is not installed."""
    folder = ROOT / "build" / "py-clients" / client
    found = folder / "bin" / name
    if not found.exists() or not list(folder.glob(f"lib/python3.*/site-packages/{package}-*.dist-info")):
        pytest.skip(f"{client} is not installed; run `tools/clients.sh {client}`")
    return found
