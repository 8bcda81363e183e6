"""cli/units.py: values as a person reads them."""

import pytest

from cwm_mcp.cli.units import counted


@pytest.mark.parametrize(("count", "said"), [(0, "0 chunks"), (1, "1 chunk"), (2, "2 chunks")])
def test_a_noun_agrees_with_its_number(count: int, said: str) -> None:
    assert counted(count, "chunk") == said
