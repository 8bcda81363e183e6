"""Whoever follows `next` gets every element of every list once, in results of less than 10 kB each."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.types import ChunkKey
from cwm_connector.settings import Settings
from tests.cwm_mcp.canned import canned_engine
from tests.cwm_mcp.homes import CHUNK_BYTES, CHUNK_TOKENS, clones, new_window
from tests.cwm_mcp.server.test_tools import answer, connected, text_of

CHUNKS = 700
TALKATIVE = [
    {
        "name": f"cwm_load_{number % 3}",
        "type": "counter",
        "value": float(number),
        "labels": {"because": 'said "no"\\' * (number % 40), "number": str(number)},
        "help": "Loads, by reason. " * 6,
    }
    for number in range(900)
]
SAMPLES = sorted(TALKATIVE, key=lambda sample: str(sample["name"]))


@pytest.fixture
def long_window(filled: Path) -> Iterator[list[str]]:
    """Add the window "long" and return the keys of its chunks."""
    keys = [ChunkKey(number.to_bytes(32, "big")) for number in range(CHUNKS)]
    stored = [ChunkRow(key, CHUNK_TOKENS, CHUNK_BYTES) for key in keys]
    catalog = SqliteCatalog.open(Settings(home=filled).catalog_path)
    catalog.commit_window(replace(new_window("long", "talk", 0), chunks=keys, stored=stored))
    catalog.close()
    yield [key.hex() for key in keys]


async def every_page(client: Client, tool: str, **arguments: Any) -> list[dict[str, Any]]:
    """Call a tool as its own `next` says until there is none."""
    pages: list[dict[str, Any]] = []
    while not pages or pages[-1].get("next"):
        if pages:
            go_on = re.fullmatch(r"call again with offset=(\d+)", pages[-1]["next"])
            assert go_on and int(go_on[1]) > arguments.get("offset", 0), pages[-1]["next"]
            arguments["offset"] = int(go_on[1])
        result = await client.call_tool(tool, arguments)
        assert len(text_of(result).encode()) < 10_000
        assert isinstance(result.structured_content, dict)
        pages.append(result.structured_content)
    assert [page.get("has_more", False) for page in pages] == [True] * (len(pages) - 1) + [False]
    return pages


@pytest.mark.parametrize("limit", [None, 60])
async def test_the_pages_of_a_windows_blocks_have_each_block_once(
    long_window: list[str], settings: Settings, limit: int | None
) -> None:
    async with connected(settings) as client:
        pages = await every_page(client, "window_status", window_name="long", include_blocks=True, limit=limit)
    assert [block["hash"] for page in pages for block in page["blocks"]] == long_window
    assert all(page["kv_cache"]["block_count"] == CHUNKS for page in pages)
    assert all(len(page["blocks"]) <= (limit or CHUNKS) for page in pages)


async def test_the_pages_of_the_metrics_have_each_sample_once(settings: Settings) -> None:
    async with canned_engine(settings, METRICS={"metrics": SAMPLES}), connected(settings) as client:
        pages = await every_page(client, "get_metrics_data", prefix="cwm_load")
    assert [sample for page in pages for sample in page["metrics"]] == SAMPLES
    assert {page["total"] for page in pages} == {len(SAMPLES)}


async def test_the_pages_of_the_text_have_each_sample_once_and_are_described(settings: Settings) -> None:
    async with canned_engine(settings, METRICS={"metrics": SAMPLES}), connected(settings) as client:
        pages = await every_page(client, "get_metrics_data", prefix="cwm_load", format="prometheus")
    lines = [line for page in pages for line in page["text"].splitlines() if not line.startswith("#")]
    assert [line.rsplit(" ", 1)[1] for line in lines] == [str(sample["value"]) for sample in SAMPLES]
    for page in pages:
        first, second, *_, last = page["text"].splitlines()
        assert (first[:7], second[:7], last[0]) == ("# HELP ", "# TYPE ", "c")


async def test_the_pages_of_the_windows_have_each_window_once(filled: Path, settings: Settings) -> None:
    clones(filled, "stem", 120)
    async with connected(settings) as client:
        pages = await every_page(client, "window_list", limit=100, sort_by="created_at", sort_order="asc")
    names = [window["name"] for page in pages for window in page["windows"]]
    assert len(names) == len(set(names)) == 123


async def test_a_page_after_the_last_is_empty_and_says_nothing_more(long_window: list[str], settings: Settings) -> None:
    async with connected(settings) as client:
        page = await answer(client, "window_status", window_name="long", include_blocks=True, offset=CHUNKS)
        plain = await answer(client, "window_status", window_name="long", limit=5)
    assert (page["blocks"], page.get("has_more"), page.get("next")) == ([], None, None)
    assert plain.keys().isdisjoint({"blocks", "has_more", "next"})
