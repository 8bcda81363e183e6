"""Fixtures of the client's tests: homes that are never the caller's own, and their settings."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwm_connector.settings import Settings, load_settings
from tests.cwm_mcp import homes


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty CWM_HOME without vLLM. Its path is short, because a unix socket's path has at most 107 bytes."""
    for name in list(os.environ):
        if name.startswith("CWM_") or name.endswith("_CODE_SESSION_ID"):
            monkeypatch.delenv(name)
    folder = Path(tempfile.mkdtemp(prefix="cwm-"))
    monkeypatch.setenv("CWM_HOME", str(folder))
    # Nothing listens on port 9.
    monkeypatch.setenv("CWM_VLLM_URL", "http://127.0.0.1:9")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def filled(home: Path) -> Path:
    """Return a CWM_HOME with three windows in its catalog."""
    homes.fill(home)
    return home


@pytest.fixture
def settings(home: Path) -> Settings:
    """Return the settings of `home`."""
    return load_settings()
