"""Rows as the contract's fields, and the check of what a listing is asked for."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import to_builtins

from cwm_connector.catalog.base import SortBy, WindowPage, WindowQuery, WindowRow
from cwm_connector.catalog.results import (
    AsRecorded,
    LiveSession,
    SessionState,
    iso,
    live_session_item,
    parse_list_args,
    parse_time,
    session_item,
    session_status,
    storage_tier,
    tier_to_read,
    window_item,
    window_page,
    window_status,
)
from cwm_connector.catalog.session_pages import SessionEvent, SessionRow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros, TierName
from cwm_connector.protocol.calls import ListArgs
from cwm_connector.protocol.results import Lineage
from tests.cwm_connector.catalog.samples import at, chain

DISK, REDIS = TierName.DISK, TierName.REDIS
ROW = WindowRow(
    name="stem",
    description="the stem",
    tags=("debug", "auth"),
    model="small",
    passport={"weights": "1234"},
    session_id="alice",
    head="h1",
    parent="root",
    token_count=773,
    restorable_tokens=768,
    block_count=3,
    size_bytes=3003,
    unique_bytes=1002,
    created_at=at(0),
    updated_at=at(1.25),
    thawed_at=None,
)
SESSION = SessionRow("alice", "small", 773, SessionEvent.FROZEN, at(0), at(5), ("stem", "root"))
LIVE = LiveSession("alice", SessionState.ACTIVE, "small", 900, 2, 880, at(-60), at(9))


class Split:
    """The first chunk in CPU memory, all of them on disk."""

    def __init__(self, hot: ChunkKey) -> None:
        self.hot = hot

    def tiers_of(self, keys: Sequence[ChunkKey]) -> dict[str, int]:
        hot = sum(key == self.hot for key in keys)
        return {tier: count for tier, count in (("cpu", hot), ("disk", len(keys))) if count}


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (at(0), "2026-01-23T09:30:00.000Z"),
        (at(0.25), "2026-01-23T09:30:00.250Z"),
        (at(0) + 1999, "2026-01-23T09:30:00.001Z"),
    ],
)
def test_a_time_is_shown_in_utc_to_the_millisecond(micros: int, text: str) -> None:
    assert iso(Micros(micros)) == text


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-23T09:30:00Z",
        "2026-01-23T09:30:00",
        "2026-01-23 09:30",
        "2026-01-23T09:30:00.000000+00:00",
        "2026-01-23T10:30:00+01:00",
        "2026-01-23T00:30:00-09:00",
        "20260123T093000Z",
    ],
)
def test_any_offset_is_understood_and_none_means_utc(text: str) -> None:
    assert parse_time(text) == at(0)


def test_a_date_is_its_first_instant() -> None:
    assert iso(parse_time("2026-01-23")) == "2026-01-23T00:00:00.000Z"


def test_the_ends_of_the_calendar_are_times_too() -> None:
    assert parse_time("0001-01-01T00:00:00+14:00") < 0 < parse_time("9999-12-31T23:59:59-14:00")


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "1769160600", "2026-01-23T09:30:00+99:00", "\0", "٢٠٢٦"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(CWMError, match="ISO 8601") as refused:
        parse_time(text)
    assert refused.value.code is Code.ARGUMENT


def test_a_listing_asked_for_nothing_is_the_newest_twenty() -> None:
    assert parse_list_args(ListArgs()) == WindowQuery(sort_by=SortBy.CREATED_AT, descending=True, limit=20, offset=0)


def test_every_argument_reaches_the_query() -> None:
    args = ListArgs(
        tags=["b", "a", "b"],
        model="small",
        search="words",
        session_id="alice",
        created_after="2026-01-23T09:30:00Z",
        created_before="2026-01-23T10:30:01+01:00",
        sort_by="size",
        sort_order="asc",
        limit=100,
        offset=40,
    )
    assert parse_list_args(args) == WindowQuery(
        tags=("b", "a"),
        model="small",
        search="words",
        session_id="alice",
        created_after=at(0),
        created_before=at(1),
        sort_by=SortBy.SIZE,
        descending=False,
        limit=100,
        offset=40,
    )


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"limit": 0}, Code.ARGUMENT),
        ({"limit": 101}, Code.ARGUMENT),
        ({"limit": -1}, Code.ARGUMENT),
        ({"offset": -1}, Code.ARGUMENT),
        ({"offset": 2**63}, Code.ARGUMENT),
        ({"sort_by": "unique_bytes"}, Code.ARGUMENT),
        ({"sort_by": "created_at; --"}, Code.ARGUMENT),
        ({"sort_order": "DESC"}, Code.ARGUMENT),
        ({"tags": ["no spaces"]}, Code.ARGUMENT),
        ({"search": "x" * 201}, Code.ARGUMENT),
        ({"created_after": "soon"}, Code.ARGUMENT),
        ({"created_before": ""}, Code.ARGUMENT),
        ({"session_id": ""}, Code.SESSION_ID),
        ({"session_id": "x" * 1025}, Code.SESSION_ID),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(wrong: dict, code: Code) -> None:
    with pytest.raises(CWMError) as refused:
        parse_list_args(ListArgs(**wrong))
    assert refused.value.code is code


def test_a_window_is_listed_with_the_contracts_fields() -> None:
    assert to_builtins(window_item(ROW, "cpu")) == {
        "name": "stem",
        "description": "the stem",
        "tags": ["debug", "auth"],
        "model": "small",
        "token_count": 773,
        "size_bytes": 3003,
        "unique_bytes": 1002,
        "storage_tier": "cpu",
        "state": "frozen",
        "created_at": "2026-01-23T09:30:00.000Z",
        "parent_window": "root",
        "session_id": "alice",
    }


def test_a_window_with_a_binding_is_thawed() -> None:
    assert window_item(replace(ROW, thawed_at=at(-100)), "disk").state == "thawed"


@pytest.mark.parametrize(("offset", "total", "more"), [(0, 3, True), (1, 3, False), (0, 2, False), (9, 3, False)])
def test_a_page_tells_whether_more_follow(offset: int, total: int, more: bool) -> None:
    windows = (ROW, replace(ROW, name="other")) if offset < total else ()
    page = window_page(WindowPage(windows, total), WindowQuery(limit=2, offset=offset), lambda row: row.name)
    assert (page.total, page.has_more) == (total, more)
    assert [item.storage_tier for item in page.windows] == [row.name for row in windows]


def test_a_status_tells_where_the_chunks_are() -> None:
    chunks = chain("a", 3)
    status = to_builtins(
        window_status(
            replace(ROW, thawed_at=at(2)), chunks, ["b1", "b2"], Split(chunks[0].key), include_blocks=True, hit_rate=0.5
        )
    )
    blocks = status.pop("blocks")
    assert status == {
        "type": "window",
        "id": "stem",
        "state": "thawed",
        "model": "small",
        "token_count": 773,
        "kv_cache": {
            "block_count": 3,
            "total_size_bytes": 3003,
            "storage_tier": "disk",
            "hit_rate": 0.5,
            "tiers": {"cpu": 1, "disk": 3},
        },
        "timestamps": {
            "created_at": "2026-01-23T09:30:00.000Z",
            "updated_at": "2026-01-23T09:30:01.250Z",
            "frozen_at": "2026-01-23T09:30:00.000Z",
            "thawed_at": "2026-01-23T09:30:02.000Z",
        },
        "lineage": {"parent": "root", "children": ["b1", "b2"]},
        "description": "the stem",
        "tags": ["debug", "auth"],
        "session_id": "alice",
        "head": "h1",
        "restorable_tokens": 768,
        "unique_bytes": 1002,
        "private": False,
        "made_by": "freeze",
    }
    assert blocks == [
        {
            "hash": row.key.hex(),
            "tokens": 256,
            "size_bytes": row.size_bytes,
            "storage_tier": "cpu" if row is chunks[0] else "disk",
        }
        for row in chunks
    ]


def test_without_an_engine_chunks_are_where_their_rows_say_and_the_rest_is_unknown() -> None:
    chunks = [
        replace(each, tiers=frozenset(tiers))
        for each, tiers in zip(chain("a", 3), ((DISK, REDIS), (REDIS,), ()), strict=True)
    ]
    status = window_status(ROW, chunks, [], AsRecorded(chunks), include_blocks=True)
    assert status.kv_cache.tiers == {"disk": 1, "redis": 2}
    assert (status.kv_cache.storage_tier, status.kv_cache.hit_rate) == ("redis", None)
    assert [block.storage_tier for block in status.blocks or ()] == ["disk", "redis", None]
    assert status.timestamps.thawed_at is None
    assert "blocks" not in to_builtins(window_status(ROW, chunks, [], AsRecorded(chunks)))


def test_a_window_without_chunks_is_on_disk() -> None:
    status = window_status(replace(ROW, block_count=0), [], [], AsRecorded([]))
    assert (status.kv_cache.storage_tier, status.kv_cache.tiers) == ("disk", {})


def test_of_a_damaged_window_only_the_name_is_told() -> None:
    item = to_builtins(window_item(replace(ROW, damaged=True), "disk"))
    assert set(item) == set(to_builtins(window_item(ROW, "disk")))
    told = {field: value for field, value in item.items() if value is not None}
    assert told == {"name": "stem", "tags": [], "state": "damaged"}


@pytest.mark.parametrize(
    ("tiers", "slowest"),
    [
        ({"cpu": 1, "disk": 3}, "disk"),
        ({"cpu": 3, "redis": 3}, "cpu"),
        ({"cpu": 2, "disk": 2, "redis": 1}, "redis"),
        ({"cpu": 1, "disk": 2}, "disk"),
        ({}, None),
    ],
)
def test_of_chunks_that_lie_apart_the_slowest_tier_counts(tiers: dict[str, int], slowest: str | None) -> None:
    assert tier_to_read(tiers, 3) == slowest


@pytest.mark.parametrize(
    ("tiers", "fastest"),
    [
        ({"cpu": 3, "disk": 3}, "cpu"),
        ({"cpu": 1, "disk": 3}, "disk"),
        ({"disk": 1, "redis": 3}, "redis"),
        ({"disk": 3, "redis": 3}, "disk"),
        ({"cpu": 0, "disk": 0}, "disk"),
    ],
)
def test_the_tier_of_a_window_is_the_fastest_that_holds_all_of_it(tiers: dict[str, int], fastest: str) -> None:
    assert storage_tier(tiers) == fastest


def test_a_session_without_an_engine_is_as_it_was_last_stored() -> None:
    assert to_builtins(session_item(SESSION)) == {
        "session_id": "alice",
        "state": "frozen",
        "model": "small",
        "token_count": 773,
        "heads": None,
        "cached_tokens": None,
        "last_active_at": iso(SESSION.updated_at),
        "created_at": "2026-01-23T09:30:00.000Z",
        "windows": ["stem", "root"],
        "title": None,
        "auto_freeze_at": None,
        "head": None,
        "head_reason": None,
        "head_names": None,
    }


def test_a_live_session_is_as_the_engine_knows_it_with_its_windows() -> None:
    assert to_builtins(live_session_item(replace(LIVE, head="h1", head_reason="it is the only one"), SESSION)) == {
        "session_id": "alice",
        "state": "active",
        "model": "small",
        "token_count": 900,
        "heads": 2,
        "cached_tokens": 880,
        "last_active_at": "2026-01-23T09:30:09.000Z",
        "created_at": "2026-01-23T09:29:00.000Z",
        "windows": ["stem", "root"],
        "title": None,
        "auto_freeze_at": None,
        "head": "h1",
        "head_reason": "it is the only one",
        "head_names": None,
    }


def test_a_session_is_as_old_as_its_oldest_trace() -> None:
    restarted = replace(LIVE, created_at=at(8))
    assert live_session_item(restarted, SESSION).created_at == "2026-01-23T09:30:00.000Z"
    assert live_session_item(restarted, None).created_at == "2026-01-23T09:30:08.000Z"
    assert live_session_item(restarted, None).windows == []


def test_a_sessions_status_has_its_windows_and_times() -> None:
    status = session_status(live_session_item(LIVE, SESSION), SESSION)
    assert (status.type, status.id, status.state, status.token_count) == ("session", "alice", "active", 900)
    assert to_builtins(status.timestamps) == {
        "created_at": "2026-01-23T09:29:00.000Z",
        "updated_at": "2026-01-23T09:30:09.000Z",
        "frozen_at": "2026-01-23T09:30:05.000Z",
        "thawed_at": None,
    }
    assert status.lineage == Lineage(parent=None, children=["stem", "root"])
    assert set(to_builtins(status.kv_cache).values()) == {None}


def test_a_thawed_sessions_status_without_an_engine() -> None:
    row = replace(SESSION, event=SessionEvent.THAWED)
    times = session_status(session_item(row), row).timestamps
    assert (times.updated_at, times.frozen_at, times.thawed_at) == (iso(at(5)), None, iso(at(5)))


def test_reading_a_catalog_imports_neither_torch_nor_vllm() -> None:
    check = (
        "import sys, cwm_connector.catalog.sqlite.catalog, cwm_connector.catalog.results; "
        "print({'torch', 'vllm', 'lmcache', 'numpy'} & set(sys.modules) or 'light')"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", check], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"
