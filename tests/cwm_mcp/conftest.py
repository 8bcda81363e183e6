"""Homes for the facade's tests, none of them the caller's own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwm_connector.settings import Settings
from tests.cwm_mcp import homes


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty CWM_HOME, with no vLLM behind it. Its path is short: unix sockets' paths end at 107 bytes."""
    for name in list(os.environ):
        if name.startswith("CWM_") or name == "CLAUDE_CODE_SESSION_ID":
            monkeypatch.delenv(name)
    folder = Path(tempfile.mkdtemp(prefix="cwm-"))
    monkeypatch.setenv("CWM_HOME", str(folder))
    # Port 9 is for discarding; nobody listens on it.
    monkeypatch.setenv("CWM_VLLM_URL", "http://127.0.0.1:9")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def filled(home: Path) -> Path:
    homes.fill(home)
    return home


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings()
