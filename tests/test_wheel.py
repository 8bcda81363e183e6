"""The wheel that `make wheel` builds, installed where nothing else of this project is.

Its dependencies come from the environment of the tests, so that no network is needed.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from cwm_connector.version import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("context_window_manager", "cwm_connector", "cwm_mcp")
NEEDED = ("Makefile", "pyproject.toml", "README.md", "LICENSE", "requirements")
"""What a build reads beside the packages; the Makefile itself reads the locks."""


def copy_source(target: Path) -> None:
    """Copy what a build needs: it leaves files, which must not lie in the checkout."""
    caches = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in (*PACKAGES, *NEEDED):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=caches)
        else:
            shutil.copy(source, target / name)


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with the wheel and what it depends on."""

    folder: Path
    home: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def environment(self) -> dict[str, str]:
        """Return variables that lead to this installation only."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {
            "PATH": path,
            "HOME": str(self.home),
            "CWM_HOME": str(self.home),
            "CWM_VLLM_URL": "http://127.0.0.1:9",
            "CWM_PYTHON": self.python,
        }

    def run(self, *words: str, stdin: str = "") -> str:
        """Run a program of the environment outside the checkout and return what it prints."""
        ran = subprocess.run(
            words, cwd=self.home, env=self.environment, input=stdin, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    copy_source(source)
    stale = source / "build" / "lib" / "cwm_connector" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("# An earlier build's.\n")
    # The set-up counts as made: the environment of the tests builds the wheel.
    make = ["make", "--no-print-directory", "--old-file=setup", "wheel", f"PY={sys.executable}", "PLATFORM=cpu"]
    ran = subprocess.run(make, cwd=source, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    (built,) = (source / "dist").iterdir()
    assert ran.stdout.split() == [f"dist/{built.name}"]
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    # A folder that a .pth file names has no .pth files read: this project's editable installation stays out.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, timeout=60)
    return Installed(folder, tmp_path_factory.mktemp("home"))


@contextmanager
def page(installed: Installed) -> Iterator[str]:
    """Serve `cwm ui` and give the address that it prints."""
    process = subprocess.Popen(
        [str(installed.folder / "bin" / "cwm"), "ui", "--no-browser"],
        cwd=installed.home,
        env=installed.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_it_packs_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    source = wheel.parents[1]
    wanted = {
        str(file.relative_to(source)): file.read_bytes()
        for package in PACKAGES
        for file in (source / package).rglob("*")
        if file.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(packed) == sorted(wanted)
    assert packed == wanted


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_read_the_packages_annotations(wheel: Path, package: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert f"{package}/py.typed" in archive.namelist()


def test_what_is_tested_is_the_installed_wheel(installed: Installed) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})))"
    for file in installed.run(installed.python, "-c", code).split():
        assert Path(file).is_relative_to(installed.folder)


def test_the_command_gives_its_version(installed: Installed) -> None:
    assert installed.run("cwm", "--version") == f"cwm {__version__}\n"


@pytest.mark.parametrize("module", ["cwm_mcp", "context_window_manager"])
async def test_the_server_greets_an_mcp_client(installed: Installed, module: str) -> None:
    server = StdioServerParameters(
        command=installed.python, args=["-m", module], env=installed.environment, cwd=installed.home
    )
    async with Client(stdio_client(server)) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
    assert {"window_freeze", "window_thaw", "health_check"} <= names


def test_the_page_is_served_with_its_files(installed: Installed) -> None:
    static = sorted((ROOT / "cwm_mcp" / "ui" / "static").iterdir())
    assert static
    with page(installed) as address, httpx.Client(follow_redirects=True) as browser:
        shown = browser.get(address)
        assert shown.status_code == 200 and "<html" in shown.text
        for file in static:
            if file.name != "index.html":
                answer = browser.get(shown.url.join(f"/{file.name}"))
                assert (answer.status_code, answer.content) == (200, file.read_bytes()), file.name


async def test_the_plugin_in_it_starts_its_server_and_its_hooks(installed: Installed) -> None:
    code = "from cwm_mcp.doctor.plugin import PLUGIN; print(PLUGIN)"
    plugin = Path(installed.run(installed.python, "-c", code).strip())
    assert plugin.is_relative_to(installed.folder)
    declared = json.loads((plugin / ".mcp.json").read_text())["mcpServers"]["cwm"]
    # Claude Code replaces the variable as a shell does.
    assert declared["command"] == "${CWM_PYTHON:-python3}"
    server = StdioServerParameters(
        command=installed.python, args=declared["args"], env=installed.environment, cwd=installed.home
    )
    async with Client(stdio_client(server)) as client:
        assert (await client.list_tools()).tools
    hooks = json.loads((plugin / "hooks" / "hooks.json").read_text())["hooks"]
    event = "PreToolUse"
    asked = json.dumps({"hook_event_name": event, "session_id": "s", "tool_input": {"session_id": "current"}})
    assert json.loads(installed.run("sh", "-c", hooks[event][0]["hooks"][0]["command"], stdin=asked))
