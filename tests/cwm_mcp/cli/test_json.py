"""`--json` prints a result as it was received, field by field."""

import json
from typing import Any

import msgspec
import pytest

from cwm_connector.protocol import results as m
from cwm_connector.protocol import stats
from cwm_mcp.cli.runner import print_result
from tests.cwm_mcp.canned import DELETED, FROZEN, HEALTH, STATUS


@pytest.mark.parametrize(
    ("kind", "canned"), [(m.Frozen, FROZEN), (m.Status, STATUS), (m.Deleted, DELETED), (stats.Health, HEALTH)]
)
def test_a_result_is_printed_field_by_field(
    kind: type[m.Answer], canned: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(msgspec.convert(canned, kind), as_json=True)
    assert capsys.readouterr().out == json.dumps(canned, indent=2) + "\n"


def test_other_letters_than_english_ones_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(m.Tagged(window_name="w", tags=[], description="größer"), as_json=True)
    assert capsys.readouterr().out == '{\n  "window_name": "w",\n  "tags": [],\n  "description": "größer"\n}\n'
