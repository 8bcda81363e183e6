"""Modules, folders, functions and docstrings keep the limits that CONTRIBUTING.md names."""

import ast
import re

import pytest

from tests.source_tree import PACKAGES, ROOT, functions, modules

MAX_LINES = 400
MAX_MODULES = 15
MAX_FUNCTION_LINES = 60

EVERYTHING = modules("cwm_connector", "cwm_mcp", "context_window_manager", "benchmarks", "demo", "tools", "tests")
SOURCE = modules(*PACKAGES)

_VERBS = """
Add Allow Answer Append Apply Ask Assign Await Begin Bind Branch Bring Build Call Cancel Carry Catch Change Check
Close Compare Connect Copy Count Create Decode Delete Deliver Describe Do Draw Drop End Fail Fill Find Follow
Forget Freeze Give Go Hand Have Hide Keep Let List Load Make Mark Measure Move Note Offer Open Pack Parse Pin Ping Post
Print Publish Queue Raise Read Record Recover Refuse Register Release Remove Repeat Replace Request Restore Return
Rewrite Run Save Seal Send Serve Set Show Start Stop Store Take Thaw Translate Try Turn Unbind Wait Write Yield
"""
VERBS = frozenset(_VERBS.split())
"""The first words of docstrings. Add a verb here when you need one. A noun or a question word is not a verb."""


def first_word(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Return the docstring's first word, or None where there is no docstring."""
    text = ast.get_docstring(function)
    return None if text is None else re.split(r"[^\w-]", text, maxsplit=1)[0]


def is_public(name: str) -> bool:
    """Return True for a function that others may call: no part of its name is private."""
    return not any(part.startswith("_") for part in name.split("."))


def test_no_module_is_too_long() -> None:
    lengths = {module.name: len(module.path.read_text().splitlines()) for module in EVERYTHING.values()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_has_too_many_modules(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in counts.items() if count > MAX_MODULES} == {}


def test_no_function_is_too_long() -> None:
    lengths = {
        name: (node.end_lineno or 0) - node.lineno + 1
        for module in EVERYTHING.values()
        for name, node in functions(module)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_public_functions_say_what_they_do_with_a_verb() -> None:
    others = {
        name: word
        for module in SOURCE.values()
        for name, node in functions(module)
        if is_public(name) and (word := first_word(node)) is not None and word not in VERBS
    }
    assert others == {}


def test_every_folder_says_whose_thread_it_is() -> None:
    silent = [module.name for module in SOURCE.values() if module.is_package and not ast.get_docstring(module.tree)]
    assert silent == []
