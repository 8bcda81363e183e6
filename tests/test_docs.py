"""The documents: their links, paths and commands exist, and they name every setting, folder and claim."""

import ast
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.settings import Settings
from cwm_mcp.server.http_access import HttpSettings

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "GUIDE.md"],
    key=lambda path: path.relative_to(ROOT),
)
PACKAGES = ("cwm_connector", "cwm_mcp")
TOP = (*PACKAGES, "context_window_manager", "tests", "docs", "demo", "benchmarks", "tools", "docker", "requirements")

everywhere = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes of the document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()) if "://" not in link]


def table(document: Path, heading: str = "") -> list[list[str]]:
    """Return the cells of the rows of the tables under `heading`, or of all tables, without their heads."""
    text = document.read_text()
    if heading:
        text = re.split(r"^## ", text.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {line for line, below in itertools.pairwise(lines) if re.fullmatch(r"[|\-: ]+", below)}
    rows = [line for line in lines if line not in heads and not re.fullmatch(r"[|\-: ]+", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows]


def source(path: str) -> Path | None:
    """Return the file or folder that a document names, from the root or from one of the packages."""
    found = [folder / path for folder in (ROOT, *(ROOT / package for package in PACKAGES)) if (folder / path).exists()]
    return found[0] if found else None


def names_in(file: Path) -> set[str]:
    """Return what a module defines: functions, classes and their methods as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


# --- every document --------------------------------------------------------------------------------------------------


@everywhere
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


@everywhere
def test_every_path_is_there(document: Path) -> None:
    named = re.findall(rf"(?<![\w/.$-])(?:{'|'.join(TOP)})/[\w./-]*\w/?", document.read_text())
    named += re.findall(r"(?<![\w/.-])(?:[a-z_]+/)*[a-z_]+\.py\b(?=[`:])", document.read_text())
    assert {path for path in named if source(path) is None} == set()


@everywhere
def test_every_function_that_is_named_with_its_file_is_in_it(document: Path) -> None:
    for path, name in re.findall(r"([\w/]+\.py)::(\w+(?:\.\w+)?)", document.read_text()):
        file = source(path)
        assert file is not None, f"{path} does not exist"
        assert name in names_in(file), f"{path} has no {name}"


@everywhere
def test_no_text_says_that_no_gpu_has_run_this(document: Path) -> None:
    text = " ".join(document.read_text().split()).lower()
    assert not re.search(r"no gpu (?:has|figure)|nothing of this has run on a gpu", text)


# --- README ----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 700


# --- CLAIMS ----------------------------------------------------------------------------------------------------------


def makes() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def pytest_paths(words: list[str]) -> bool:
    return bool(words) and all((ROOT / word).exists() for word in words)


RUNNABLE: dict[str, Callable[[list[str]], bool]] = {
    "make": lambda words: set(words) <= makes(),
    "pytest": pytest_paths,
    "python": lambda words: words[0] == "-m" and source(words[1].replace(".", "/") + ".py") is not None,
}


def claims() -> Iterator[tuple[str, list[str]]]:
    for number, _, commands, _ in table(ROOT / "CLAIMS.md"):
        yield number, re.findall(r"`([^`]+)`", commands)


@everywhere
def test_every_test_that_is_named_exists(document: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", document.read_text()))
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    missing = {name for name in named if not any(re.search(rf"def {name}\b", text) for text in tests)}
    assert not missing, f"{document.name} names tests that do not exist"


def test_every_claim_has_a_command_that_exists() -> None:
    found = list(claims())
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    for number, commands in found:
        assert commands, f"claim {number} names no command"
        for command in commands:
            program, *words = command.split()
            assert RUNNABLE[program](words), f"claim {number}: {command} can't run"


# --- settings --------------------------------------------------------------------------------------------------------


def fields_of(settings_class: Any) -> dict[str, Any]:
    """Return the fields of a class of settings, each with its default."""
    return getattr(settings_class, "model_fields", None) or settings_class.__dataclass_fields__


@pytest.mark.parametrize(("settings_class", "prefix"), [(Settings, "CWM_"), (HttpSettings, "CWM_HTTP_")])
def test_every_setting_is_described_with_its_default(settings_class: Any, prefix: str) -> None:
    rows = {row[0].strip("`"): row for row in table(ROOT / "docs" / "settings.md")}
    for field, info in fields_of(settings_class).items():
        name = f"{prefix}{field.upper()}"
        assert name in rows, f"docs/settings.md lacks {name}"
        _, unit, default, meaning = rows.pop(name)
        assert unit and meaning
        if field in ("socket", "disk_path"):
            continue  # inside CWM_HOME
        expected = "none" if info.default in (None, "") else f"`{info.default!s}`"
        if isinstance(info.default, bool):
            expected = expected.lower()
        assert default == expected, name


def test_no_setting_is_described_that_does_not_exist() -> None:
    described = {row[0].strip("`") for row in table(ROOT / "docs" / "settings.md")}
    known = {f"CWM_{field.upper()}" for field in fields_of(Settings)}
    known |= {f"CWM_HTTP_{field.upper()}" for field in fields_of(HttpSettings)}
    assert described == known


# --- architecture ----------------------------------------------------------------------------------------------------


def test_the_glossary_has_twelve_words() -> None:
    assert len(table(ARCHITECTURE, "Glossary")) == 12


def test_the_table_of_changes_names_a_place_for_each() -> None:
    rows = table(ARCHITECTURE, "To change X, open Y")
    assert len(rows) >= 15
    for change, place in rows:
        paths = re.findall(r"`(\w[\w/.]+?)(?:::[\w.]+)?`", place)
        assert paths and source(paths[0]) is not None, change


@pytest.mark.parametrize("package", PACKAGES)
def test_the_layers_name_every_folder_and_module(package: str) -> None:
    block = re.search(rf"```text\nlayers \({package}\):\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)
    assert block is not None
    named = {name.strip() for name in block[1].replace("\n", ",").split(",") if name.strip()}
    folder = ROOT / package
    there = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert named == there - {"__init__"}
