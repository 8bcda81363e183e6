"""Imports run one way: from a folder to those below it in the layers that docs/architecture.md draws."""

import re
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.source_tree import PACKAGES, ROOT, Module, imports, modules

CLIENT_MAY_IMPORT = (
    "cwm_connector.catalog",
    "cwm_connector.core",
    "cwm_connector.operations.auto_freeze.mark",
    "cwm_connector.protocol",
    "cwm_connector.redis",
    "cwm_connector.settings",
    "cwm_connector.store.lock",
    "cwm_connector.version",
)
"""What `cwm_mcp` takes from the connector: nothing that loads torch, vLLM or LMCache."""

Layers = Sequence[frozenset[str]]


def drawn_layers(text: str) -> dict[str, Layers]:
    """Return each package's layers from top to bottom, as the document's blocks list them."""
    blocks = re.findall(r"^layers \((\w+)\):\n((?:[^`\n].*\n)+)", text, re.MULTILINE)
    return {
        package: [frozenset(re.split(r",\s*", line.strip())) for line in lines.splitlines()]
        for package, lines in blocks
    }


def folder_of(name: str) -> str:
    """Return the folder, or the module at the package's top, that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def upward_imports(package: str, layers: Layers, known: dict[str, Module]) -> list[str]:
    """Return the imports within the package that don't run to a lower layer."""
    level = {folder: number for number, layer in enumerate(layers) for folder in layer}
    return [
        f"{module.name} imports {target}"
        for module in known.values()
        if module.name.startswith(f"{package}.")
        for target in imports(module, known)
        if target.startswith(f"{package}.")
        and folder_of(target) != folder_of(module.name)
        and level[folder_of(target)] <= level[folder_of(module.name)]
    ]


KNOWN = modules(*PACKAGES)
DRAWN = drawn_layers((ROOT / "docs" / "architecture.md").read_text())


@pytest.mark.parametrize("package", PACKAGES)
def test_the_document_draws_every_folder_once(package: str) -> None:
    drawn = sorted(folder for layer in DRAWN[package] for folder in layer)
    real = sorted({folder_of(name) for name in KNOWN if name.startswith(f"{package}.")})
    assert drawn == real


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_to_lower_layers_only(package: str) -> None:
    assert upward_imports(package, DRAWN[package], KNOWN) == []


def test_the_client_imports_the_connectors_light_parts_only() -> None:
    strays = [
        f"{module.name} imports {target}"
        for module in KNOWN.values()
        if module.name.startswith("cwm_mcp.")
        for target in imports(module, KNOWN)
        if target.startswith("cwm_connector.") and not target.startswith(CLIENT_MAY_IMPORT)
    ]
    assert strays == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module.name: set(imports(module, KNOWN)) - {module.name} for module in KNOWN.values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(f"imports run in a circle: {' -> '.join(circle.args[1])}")


def test_an_import_upwards_is_found(tmp_path: Path) -> None:
    for name, text in {"high/__init__.py": "", "low/__init__.py": "def f():\n    import box.high\n"}.items():
        path = tmp_path / "box" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    known = modules("box", root=tmp_path)
    layers = drawn_layers("layers (box):\nhigh\nlow\n")["box"]
    assert upward_imports("box", layers, known) == ["box.low imports box.high"]
