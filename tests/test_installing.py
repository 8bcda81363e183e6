"""How people install this project: from a checkout, from a git URL or from a wheel, and never by its name.

The name `context-window-manager` on PyPI is another project's: pip would install that one.
"""

import importlib.metadata
import re
from pathlib import Path

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.wire import Welcome
from cwm_connector.version import __version__
from cwm_mcp.doctor import clients, engine, installed
from cwm_mcp.serve import installed_build


def missing(distribution: str) -> str:
    raise importlib.metadata.PackageNotFoundError(distribution)


def test_the_doctor_installs_from_a_checkout(tmp_path: Path) -> None:
    def version_of(distribution: str) -> str:
        return "0.31.0" if distribution == "vllm" else missing(distribution)

    welcome = Welcome(version=1, engine_version=f"{__version__}.1", model="m", pid=1)
    found = [
        *installed.checks(missing),
        *installed.checks(version_of, ["vllm==0.32.0; extra == 'cuda'", "lmcache==0.5.6; extra == 'cuda'"]),
        clients.check(tmp_path),
        engine._version(welcome),
    ]
    steps = [check.next for check in found if check.name != "python"]
    assert len(steps) == 5
    for step in steps:
        assert step is not None
        assert re.fullmatch(r"pip install .*('\.\[(cpu|cuda)\]'|\.)  # in a checkout of Context Window Manager.*", step)


def test_cwm_serve_without_vllm_installs_from_a_checkout() -> None:
    with pytest.raises(CWMError) as refused:
        installed_build(missing)
    assert "in a checkout of Context Window Manager run pip install '.[cuda]'" in str(refused.value)
