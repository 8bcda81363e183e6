"""docs/clients-and-machines.md: each kind has an instance, and a test that is there."""

import re
from typing import Final

import pytest

from tests.support.paths import ROOT
from tests.test_docs import names_in, table

ROWS: Final = table(ROOT / "docs" / "clients-and-machines.md")
REPORTED: Final = (
    "strict types", "proxy on the way", "idle clients", "answers larger", "search for languages", "HTTP session",
    "loopback HTTP", "file systems", "Redis that hides",
)  # fmt: skip
"""The kinds that public reports have shown in other servers, and that were tried here first."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_kind_has_an_instance_and_a_test_that_is_there(row: list[str]) -> None:
    kind, instance, tests = row
    assert kind and instance
    named = re.findall(r"`([\w/.]+)(?:::(\w+))?`", tests)
    assert named and ", ".join(f"`{path}{'::' * bool(name)}{name}`" for path, name in named) == tests
    for path, name in named:
        files = [ROOT / path] if path.endswith(".py") else sorted((ROOT / path).glob("test_*.py"))
        found = {each for file in files for each in names_in(file) if each.startswith("test_")}
        assert found if not name else name in found, f"{path} has no {name or 'test'}"


@pytest.mark.parametrize("reported", REPORTED)
def test_every_kind_of_the_reports_has_its_row(reported: str) -> None:
    assert [kind for kind, *_ in ROWS if reported in kind]
