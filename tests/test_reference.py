"""The pages that are made from the code are current and complete."""

import pytest

from cwm_connector.core.errors import Code
from cwm_mcp.cli.codes import CODES
from cwm_mcp.server.tools import TOOLS
from tools.reference import DOCS, pages


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_page_is_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text() == pages()[name], "run `python -m tools.reference`"


def test_every_code_is_explained_and_every_tool_listed() -> None:
    assert set(CODES) == set(Code)
    for tool in TOOLS:
        assert f"## {tool.name}\n" in pages()["tools.md"]
