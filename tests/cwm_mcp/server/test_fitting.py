"""No tool result is over 10 kB, and every list that was cut says how to go on."""

import json
from typing import Any

import pytest

from cwm_connector.protocol import results, stats
from cwm_connector.protocol.results import Answer
from cwm_mcp.server.fitting import SHORTENED, fitted
from tests.cwm_mcp.canned import STATUS

LONG = "长" * 2000
WINDOW = {"name": "w" * 128, "description": LONG, "tags": ["标" * 64] * 32, "created_at": "2026"}


def size(content: dict[str, Any]) -> int:
    return len(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())


@pytest.mark.parametrize("name", ["windows", "sessions", "blocks", "metrics"])
def test_a_long_page_is_cut_and_names_the_next_offset(name: str) -> None:
    entries = [{"name": f"w{n}", "description": "d" * 500} for n in range(100)]
    content = fitted({name: entries, "total": 100, "has_more": False}, offset=40)
    shown = len(content[name])
    assert size(content) < 10_000 and 10 < shown < 100
    assert (content["has_more"], content["next"]) == (True, f"call again with offset={40 + shown}")


def test_going_on_at_the_named_offset_shows_every_entry_once() -> None:
    entries = [{"name": f"w{n}", "description": "d" * (37 * n % 900)} for n in range(100)]
    seen: list[Any] = []
    while len(seen) < 100:
        page = fitted({"windows": entries[len(seen) :], "total": 100, "has_more": False}, offset=len(seen))
        seen += page["windows"]
        assert page.get("next") == (f"call again with offset={len(seen)}" if len(seen) < 100 else None)
    assert seen == entries


def test_a_page_that_fits_is_left_alone() -> None:
    content = {"windows": [{"name": "w"}], "total": 1, "has_more": False}
    assert fitted(dict(content)) == content


def test_a_single_entry_that_is_too_large_is_shortened() -> None:
    content = fitted({"windows": [WINDOW, WINDOW], "total": 2, "has_more": False})
    assert size(content) < 10_000 and len(content["windows"]) == 1
    assert content["windows"][0]["name"] == WINDOW["name"]


def test_a_text_ends_with_a_sample_and_counts_samples_only() -> None:
    samples = [f'# HELP m_{n} "{LONG[:9]}"\nm_{n}{{name="{"q" * n}"}} 1\n' for n in range(400)]
    page = fitted({"text": "".join(samples), "has_more": False}, offset=30)
    shown = page["text"].count(" 1\n")
    assert size(page) < 10_000 and page["text"] == "".join(samples[:shown])
    assert (page["has_more"], page["next"]) == (True, f"call again with offset={30 + shown}")


def test_a_status_too_large_without_its_blocks_says_where_it_is_whole() -> None:
    children = ["窗" * 80 + str(n) for n in range(900)]
    content = fitted({**STATUS, "lineage": {"parent": None, "children": children}, "blocks": ["b"] * 3})
    assert size(content) < 10_000 and content["lineage"]["children"] == children[:20]
    assert content["next"] == f"call again with offset=1; {SHORTENED}"
    longer = ["窗" * 199 + str(n) for n in range(900)]
    content = fitted({**STATUS, "lineage": {"parent": None, "children": longer}})
    assert (content["lineage"]["children"], content["next"]) == (longer[:5], SHORTENED)


def test_the_results_with_lists_have_a_place_for_it() -> None:
    kinds: tuple[type[Answer], ...] = (results.WindowList, results.SessionList, results.Status, stats.Metrics)
    assert all("next" in kind.__struct_fields__ for kind in kinds)
