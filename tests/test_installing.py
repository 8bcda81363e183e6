"""How people install this project: from a checkout, from a git URL or from a wheel, and never by its name.

The name `context-window-manager` on PyPI is another project's: pip would install that one.
"""

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.wire import Welcome
from cwm_connector.version import __version__
from cwm_mcp.doctor import engine, packages, plugin
from cwm_mcp.serve import installed_build

ROOT = Path(__file__).resolve().parents[1]
MADE = {
    ".git",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "__pycache__",
    "build",
    "dist",
}
INSTALLERS = r"pip3?|pipx|uv|uvx|poetry|pdm|conda|add|install|run"
BY_NAME = re.compile(rf"\b(?:{INSTALLERS})\s[^\n]*?(?<![/\w.])context[-_]window[-_]manager\b(?!\S*\s*@\s)(?![-_/.])")
"""An installer's command with the name as what it installs. `name @ git+URL` is no such command, nor is a path."""


def commands(text: str) -> list[str]:
    """Return the commands in a text that would install the project by its name."""
    return [match[0] for match in BY_NAME.finditer(text)]


def texts(folder: Path = ROOT) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in MADE or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from texts(path)
        elif path != Path(__file__).resolve() and path.suffix != ".png":
            yield path


@pytest.mark.parametrize(
    "text",
    [
        "pip install context-window-manager",
        "`pip install 'context-window-manager[cuda]'`",
        "pip install --upgrade context-window-manager==0.1.0",
        "uv pip install --system context_window_manager",
        "uvx context-window-manager",
        "install context-window-manager with the extra [cuda]",
    ],
)
def test_a_command_with_the_name_is_found(text: str) -> None:
    assert commands(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'context-window-manager[cuda] @ git+https://example.org/owner/context-window-manager'",
        "pip install '.[cuda]'",
        "pip install dist/context_window_manager-0.1.0-py3-none-any.whl",
        "python -m context_window_manager",
        'name = "context-window-manager"',
    ],
)
def test_other_uses_of_the_name_are_not(text: str) -> None:
    assert commands(text) == []


def test_no_text_tells_anybody_to_install_by_name() -> None:
    read = list(texts())
    assert ROOT / "README.md" in read and ROOT / "cwm_mcp" / "doctor" / "packages.py" in read
    found = {str(path.relative_to(ROOT)): commands(path.read_text(errors="replace")) for path in read}
    assert {path: lines for path, lines in found.items() if lines} == {}


def missing(distribution: str) -> str:
    raise importlib.metadata.PackageNotFoundError(distribution)


def test_the_doctor_installs_from_a_checkout(tmp_path: Path) -> None:
    def version_of(distribution: str) -> str:
        return "0.30.0" if distribution == "vllm" else missing(distribution)

    welcome = Welcome(version=1, engine_version=f"{__version__}.1", model="m", pid=1)
    found = [
        *packages.check_packages(missing),
        *packages.check_packages(version_of, ["vllm<0.34,>=0.31; extra == 'cuda'", "lmcache==0.5.6; extra == 'cuda'"]),
        plugin.check_plugin(tmp_path),
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
