"""Tables for a terminal."""

import io
import time
from typing import Any

import msgspec
import pytest
from rich.console import Console

from cwm_connector.protocol import results as m
from cwm_connector.protocol import stats
from cwm_mcp.cli.render import renderable
from cwm_mcp.cli.units import minute, size
from tests.cwm_mcp.canned import FROZEN


def drawn(result: msgspec.Struct) -> str:
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as capture:
        console.print(renderable(result))
    return capture.get()


def a_session(title: str | None) -> m.SessionItem:
    return m.SessionItem(
        session_id="s",
        state="active",
        model="m",
        token_count=700,
        heads=None,
        cached_tokens=None,
        last_active_at="2026-01-23T09:30:15.250Z",
        created_at=None,
        windows=[],
        title=title,
        auto_freeze_at=None,
    )


def test_what_somebody_wrote_is_neither_markup_nor_a_command_to_the_terminal() -> None:
    shown = drawn(m.SessionList(sessions=[a_session("[red]\x1b[2Jhi[/red]")], total=1, has_more=False))
    assert "[red] [2Jhi[/red]" in shown
    assert "\x1b" not in shown


def test_the_unknown_is_a_dash_and_not_a_zero() -> None:
    store = stats.KvStore(
        total_blocks=0, total_bytes=0, hit_rate=None, hits=None, misses=None, dedup_ratio=None, tiers={"cpu": None}
    )
    vllm = stats.VllmCache(connected=False, prefix_cache_hit_rate=None, external_hit_rate=None, cached_tokens=None)
    rows = dict(
        line.split()
        for line in drawn(stats.CacheStats(kv_store=store, vllm=vllm)).splitlines()
        if len(line.split()) == 2
    )
    assert rows["kv_store.total_blocks"] == "0"
    assert rows["kv_store.hit_rate"] == rows["kv_store.tiers.cpu"] == "-"


def test_shares_factors_and_switches_are_shown_as_people_read_them() -> None:
    store = stats.KvStore(
        total_blocks=3, total_bytes=2048, hit_rate=0.30789302, hits=1, misses=2, dedup_ratio=4.868451, tiers={}
    )
    vllm = stats.VllmCache(connected=True, prefix_cache_hit_rate=None, external_hit_rate=None, cached_tokens=None)
    moving = [stats.Transfer(kind="freeze", name="w", done=1, total=3, started_at="2026-01-03T08:59:00.000Z")]
    shown = drawn(stats.CacheStats(kv_store=store, vllm=vllm, transfers=moving))
    assert "freeze w 1 of 3" in shown
    assert "30.8%" in shown and "4.9 ×" in shown and "2.0 KiB" in shown
    assert "yes" in shown and "True" not in shown


def test_a_page_says_how_much_there_is_beyond_it() -> None:
    assert "1 of 7" in drawn(m.SessionList(sessions=[a_session(None)], total=7, has_more=True))
    assert " of " not in drawn(m.SessionList(sessions=[a_session(None)], total=1, has_more=False))


def test_a_session_with_several_heads_says_which_one_a_freeze_takes_and_why() -> None:
    several = msgspec.structs.replace(a_session(None), heads=3, head="h2", head_reason="it is the longest")
    assert "s: a freeze takes head h2; it is the longest" in drawn(m.SessionList([several], 1, False))
    one = msgspec.structs.replace(several, heads=1)
    assert "a freeze takes" not in drawn(m.SessionList([one], 1, False))


def test_the_heads_of_a_session_are_listed_as_arguments() -> None:
    several = msgspec.structs.replace(
        a_session(None), heads=2, head="a", head_reason="it is the longest", head_names=["a", "b"]
    )
    assert "Its heads: s/a, s/b" in drawn(m.SessionList([several], 1, False))


def test_times_are_the_readers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for zone, shown in (("UTC", "2026-01-23 09:30"), ("Asia/Tokyo", "2026-01-23 18:30")):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert minute("2026-01-23T09:30:15.250Z") == shown
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_freeze_shows_its_head_why_and_the_others_in_one_line() -> None:
    others = [
        m.OtherHead(head=f"h{number}", token_count=10 * number, last_active_at="", title=None) for number in (2, 3)
    ]
    told: dict[str, Any] = {**FROZEN, "head": "h1", "head_reason": "it is the longest", "more_heads": 7}
    frozen = m.Frozen(**told, other_heads=others)
    lines = [line.rstrip().split(maxsplit=1) for line in drawn(frozen).splitlines()]
    assert ["head", "h1"] in lines and ["head_reason", "it is the longest"] in lines
    assert ["other_heads", "h2 (20 tokens), h3 (30 tokens) and 7 more"] in lines
    alone = msgspec.structs.replace(frozen, other_heads=[], more_heads=0)
    assert "other_heads" not in drawn(alone)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (1 << 60, "1048576.0 TiB")],
)
def test_sizes_are_in_binary_units(count: int, text: str) -> None:
    assert size(count) == text


def test_a_reply_keeps_its_lines_and_a_thaw_without_one_says_nothing_of_it() -> None:
    thawed = m.Thawed(
        session_id="s",
        cache_salt="salt",
        window_name="w",
        token_count=700,
        restorable_tokens=640,
        restored_by_tier={"cpu": 640},
        restoration_time_ms=1.0,
        partial=False,
        warning=None,
        recompute_is_faster=None,
    )
    assert "reply" not in drawn(thawed)
    shown = drawn(msgspec.structs.replace(thawed, reply="One.\n\nTwo \x1b[2J."))
    assert [line.strip() for line in shown.splitlines()[-3:]] == ["One.", "", "Two  [2J."]
