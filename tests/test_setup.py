"""`make setup` with other Pythons on the machine: which one it takes, and what it says where none fits."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
"""What the locks, the set-up and the classifiers agree on."""
TOOLS = ("dirname", "grep", "touch")
"""Every program that the script runs beside bash and Python."""

INTERPRETER = """#!{shell}
case "$1" in
  -c) exec {python} -c "import sys; sys.version_info = ({major}, {minor}, 1, 'final', 0); exec(sys.argv[1])" "$2" ;;
  -m) echo "{name} $*" >>{log}; {venv} ;;
esac
"""
"""A Python of another version: it says so, and writes down what it is asked to make."""

VENV = "mkdir -p .venv/bin && cp {pip} .venv/bin/python"
PIP = """#!{shell}
echo "pip $*" >>{log}
case "$*" in {refused}) exit 1 ;; esac
"""


class Machine:
    """A checkout, and a PATH on which nothing lies but bash's helpers and the given Pythons."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.programs = folder / "bin"
        self.log = folder / "log"
        self.shell = shutil.which("bash")
        (self.checkout / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "tools" / "setup.sh", self.checkout / "tools")
        (self.checkout / "lock.txt").write_text("torch==2.13.0+cpu\nmsgspec==0.22.0\n")
        self.programs.mkdir()
        for tool in (*TOOLS, "mkdir", "cp"):
            found = shutil.which(tool)
            assert found, f"{tool} is missing"
            (self.programs / tool).symlink_to(found)
        self.pip("nothing-is-refused")

    def pip(self, refused: str) -> None:
        """Let the environment's pip fail for a command line like `refused`, a shell pattern."""
        self._program(self.programs / "fake-pip", PIP.format(shell=self.shell, log=self.log, refused=refused))

    def install(self, name: str, version: str, *, venv: bool = True) -> None:
        major, minor = version.split(".")
        make = VENV.format(pip=self.programs / "fake-pip") if venv else "exit 1"
        values: Mapping[str, object] = {"name": name, "major": major, "minor": minor, "venv": make}
        text = INTERPRETER.format(shell=self.shell, python=sys.executable, log=self.log, **values)
        self._program(self.programs / name, text)

    def break_shim(self, name: str) -> None:
        """Install a version manager's shim for a version that is not selected: it is found but does not run."""
        self._program(self.programs / name, f"#!{self.shell}\nexit 127\n")

    def setup(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.shell), str(self.checkout / "tools" / "setup.sh"), "lock.txt", "stamp"],
            env={"PATH": str(self.programs)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _program(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("generic", [False, True])
def test_each_python_of_the_locks_is_taken(machine: Machine, version: str, generic: bool) -> None:
    name = "python3" if generic else f"python{version}"
    machine.install(name, version)
    ran = machine.setup()
    assert ran.returncode == 0, ran.stderr
    assert machine.logged()[0] == f"{name} -m venv --clear .venv"
    assert machine.logged()[-1].endswith("install --no-compile --no-deps -r lock.txt")
    assert (machine.checkout / "stamp").exists()
    assert f"with Python {version}" in ran.stderr


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_another_python_gets_one_clear_line(machine: Machine, version: str) -> None:
    machine.install("python3", version)
    ran = machine.setup()
    assert (ran.returncode, ran.stdout) == (1, "")
    expected = f"make setup: Python 3.11, 3.12 or 3.13 is needed (python3 is {version}); install one of them\n"
    assert ran.stderr == expected
    assert machine.logged() == []


def test_no_python_at_all_gets_one_clear_line(machine: Machine) -> None:
    ran = machine.setup()
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "make setup: Python 3.11, 3.12 or 3.13 is needed (no python3 was found); install one of them"
    ]


def test_a_newer_python3_does_not_hide_one_that_fits(machine: Machine) -> None:
    machine.install("python3", "3.14")
    machine.break_shim("python3.11")
    machine.install("python3.12", "3.12")
    assert machine.setup().returncode == 0
    assert machine.logged()[0].startswith("python3.12 -m venv")


def test_a_python_without_venv_is_named_with_the_package_that_brings_it(machine: Machine) -> None:
    machine.install("python3", "3.12", venv=False)
    ran = machine.setup()
    assert ran.returncode == 1
    assert "install python3.12-venv" in ran.stderr
    assert not (machine.checkout / "stamp").exists()


def test_a_torch_that_pip_does_not_find_comes_from_pytorchs_index(machine: Machine) -> None:
    machine.install("python3.13", "3.13")
    machine.pip("*--dry-run*")
    assert machine.setup().returncode == 0
    fetched = [line for line in machine.logged() if "--extra-index-url https://download.pytorch.org/whl/cpu" in line]
    assert [line.split()[-1] for line in fetched] == ["torch==2.13.0+cpu"]


def test_a_torch_that_is_nowhere_is_named_with_the_python_that_it_is_for(machine: Machine) -> None:
    machine.install("python3.13", "3.13")
    machine.pip("*torch*")
    ran = machine.setup()
    assert ran.returncode == 1
    assert "no wheel of torch==2.13.0+cpu for Python 3.13" in ran.stderr
    assert not (machine.checkout / "stamp").exists()


def test_the_project_names_the_same_pythons_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    classifiers = [text.rpartition(" ")[2] for text in project["project"]["classifiers"] if " Python :: 3." in text]
    assert tuple(classifiers) == PYTHONS
    lock = (ROOT / "tools" / "lock.sh").read_text()
    assert re.findall(r"^pythons=\((.*)\)$", lock, re.MULTILINE) == [" ".join(PYTHONS)]
    # Types and style are checked for the oldest, which knows least.
    assert project["tool"]["mypy"]["python_version"] == PYTHONS[0]
    assert project["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"
    assert project["project"]["requires-python"] == f">={PYTHONS[0]}"
