"""What contributors rely on: `make check`, the hooks that repeat it, and the two texts written for them."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ".venv/bin/python"


def hooks() -> list[dict[str, Any]]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    return [hook for repository in config["repos"] for hook in repository["hooks"]]


def recipe(target: str) -> list[str]:
    """Return the commands of a target in the Makefile as a shell gets them."""
    makefile = (ROOT / "Makefile").read_text()
    assert f"\nPY := {PYTHON}\n" in makefile
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert found, f"no target {target}"
    return [line.strip().removeprefix("@").replace("$(PY)", PYTHON) for line in found[1].splitlines()]


def test_the_hooks_run_what_make_check_runs() -> None:
    commands = recipe("check")
    assert len(commands) >= 3
    assert [hook["entry"] for hook in hooks()] == commands


def test_the_hooks_need_nothing_but_the_environment_of_make_setup() -> None:
    for hook in hooks():
        # Another language would install the tools a second time, in versions of its own.
        assert hook["language"] == "system"
        # Each command finds its files itself, as it does in `make check`.
        assert hook["pass_filenames"] is False


def test_make_test_begins_with_the_check() -> None:
    (line,) = re.findall(r"^test: (.*?) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "check" in line.split()


def test_contributing_names_files_and_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"\b((?:tests|tools|docs|cwm_connector|cwm_mcp)/[\w./-]+\w)", text))
    targets = set(re.findall(r"\bmake (setup|model|check|test|lock|wheel)\b", text))
    assert len(paths) >= 8 and len(targets) == 6
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_the_change_that_contributing_suggests_changes_something() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (old, new, file) = re.findall(r"sed -i 's/(.+)/(.+)/' (\S+)", text)[0]
    assert old != new and (ROOT / file).read_text().count(old) == 1


def test_the_changelog_has_the_version_that_is_built() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\] - (Unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert headings[0][0] == version
