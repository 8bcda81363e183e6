"""Listing and searching: every condition against a plain filter, and text that means something to SQL."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.catalog.base import SortBy, WindowQuery, WindowRow
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.query import count_of, page_of, some_of
from cwm_connector.catalog.words import searched_text
from cwm_connector.core.errors import Code, CWMError
from tests.cwm_connector.catalog.samples import at, chain, new_window

TAGS = ("debug", "auth", "wip", "project-x")
SORT_KEYS = {
    SortBy.NAME: lambda row: row.name,
    SortBy.CREATED_AT: lambda row: row.created_at,
    SortBy.TOKEN_COUNT: lambda row: row.token_count,
    SortBy.SIZE: lambda row: row.size_bytes,
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SqliteCatalog, list[WindowRow]]]:
    """80 windows, with equal times, sizes and token counts among them, in the order of their commits."""
    choose = random.Random(1)
    with closing(SqliteCatalog.open(tmp_path_factory.mktemp("list") / "catalog.sqlite")) as catalog:
        rows = []
        for n in range(80):
            new = new_window(
                f"{choose.choice('xyz')}-{n}",
                chain(choose.choice("abcdef"), choose.randrange(5)),
                tags=choose.sample(TAGS, choose.randrange(4)),
                model=choose.choice(("small", "large")),
                session_id=choose.choice(("alice", "bob")),
                created_at=at(choose.randrange(20)),
            )
            rows.append(catalog.commit_window(new))
        yield catalog, [catalog.window(row.name) for row in rows]


def expected(rows: list[WindowRow], query: WindowQuery) -> list[WindowRow]:
    words = (query.search or "").split()
    held = [
        row
        for row in rows
        if all(word in searched_text(row.name, row.description, row.tags) for word in words)
        and set(query.tags) <= set(row.tags)
        and query.model in (None, row.model)
        and query.session_id in (None, row.session_id)
        and (query.created_after is None or row.created_at > query.created_after)
        and (query.created_before is None or row.created_at < query.created_before)
    ]
    # `rows` is in the order of the commits, which decides among equals.
    ordered = sorted(held, key=SORT_KEYS[query.sort_by])
    return ordered[::-1] if query.descending else ordered


@pytest.mark.parametrize("many", [0, 20, 1000], ids=["walked", "some walked", "sorted"])
@pytest.mark.parametrize("seed", range(80))
def test_a_page_is_what_a_plain_filter_gives(
    filled: tuple[SqliteCatalog, list[WindowRow]], seed: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the pages of an index that is followed from either end with those that are sorted."""
    monkeypatch.setattr("cwm_connector.catalog.sqlite.query._MANY", many)
    catalog, rows = filled
    choose = random.Random(seed)
    query = WindowQuery(
        tags=choose.sample(TAGS, choose.choice((0, 0, 1, 2))),
        model=choose.choice((None, None, "small")),
        search=choose.choice((None, None, "x", "1", "1 x", "project y", "zz")),
        session_id=choose.choice((None, None, "alice")),
        created_after=choose.choice((None, at(choose.randrange(20)))),
        created_before=choose.choice((None, at(choose.randrange(20)))),
        sort_by=choose.choice(list(SortBy)),
        descending=choose.random() < 0.5,
        limit=choose.randrange(1, 30),
        offset=choose.choice((0, 0, 5, 30, 60, 100)),
    )
    every = expected(rows, query)
    page = catalog.list_windows(query)
    assert page.total == len(every)
    assert list(page.windows) == every[query.offset : query.offset + query.limit]


def test_pages_laid_end_to_end_hold_every_window_once(filled: tuple[SqliteCatalog, list[WindowRow]]) -> None:
    catalog, rows = filled
    pages = [catalog.list_windows(WindowQuery(sort_by=SortBy.SIZE, limit=7, offset=n)) for n in range(0, 80, 7)]
    listed = [row for page in pages for row in page.windows]
    assert len(listed) == len(rows)
    assert {row.name for row in listed} == {row.name for row in rows}


@pytest.mark.parametrize("sort_by", SortBy)
def test_no_listing_sorts_the_whole_table(catalog: SqliteCatalog, path: Path, sort_by: SortBy) -> None:
    page = page_of(WindowQuery(sort_by=sort_by), 9)
    with closing(sqlite3.connect(path)) as raw:
        plan = " ".join(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {page.sql}", page.values))
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("sort_by", SortBy)
@pytest.mark.parametrize(
    ("conditions", "begins"),
    [
        ({}, "x"),
        ({"tags": ["debug", "auth"]}, "g USING COVERING INDEX window_tags_by_tag"),
        ({"tags": ["debug"], "session_id": "alice"}, "w USING COVERING INDEX windows_by_session"),
        ({"model": "small"}, "w USING COVERING INDEX windows_by_model"),
    ],
)
def test_a_search_reads_each_table_once_and_sorts_none(
    catalog: SqliteCatalog, path: Path, sort_by: SortBy, conditions: dict[str, Any], begins: str
) -> None:
    query = WindowQuery(search="token cache login", sort_by=sort_by, **conditions)
    with closing(sqlite3.connect(path)) as raw:
        for asked in (some_of(query), count_of(query, 7), page_of(query, 9000)):
            steps = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {asked.sql}", asked.values)]
            # The windows of a session are few, and come in the order of their times.
            sorts = "session_id" in conditions and asked == some_of(query)
            assert any("TEMP B-TREE" in step for step in steps) is sorts
            assert not [step for step in steps if "LIST" in step]
            assert len([step for step in steps if step.startswith("SCAN")]) <= 1
            if asked == count_of(query, 7):
                assert steps[0].split(" ", 1)[1].startswith(begins)


def test_what_a_user_types_is_never_part_of_the_sql() -> None:
    evil = "'; DROP TABLE windows; --"
    query = WindowQuery(tags=[evil], model=evil, search=evil, session_id=evil)
    assert "DROP" not in page_of(query, 9).sql + count_of(query, 7).sql + some_of(query).sql


# --- search ---


@pytest.fixture
def library(catalog: SqliteCatalog) -> SqliteCatalog:
    texts = {
        "debug-session-jan23": ("Debugging the authentication flow - found the issue with token refresh", ["auth"]),
        "approach-a": ("Naïve caching, O'Brien's \"plan\"", ["experiment", "project-x"]),
        "session_of_debug": ("", ["wip", "v1.2:rc"]),
    }
    for n, (name, (description, tags)) in enumerate(texts.items()):
        catalog.commit_window(new_window(name, chain(name, 1), description=description, tags=tags, created_at=at(n)))
    return catalog


def found(catalog: SqliteCatalog, search: str) -> set[str]:
    page = catalog.list_windows(WindowQuery(search=search))
    assert page.total == len(page.windows)
    return {row.name for row in page.windows}


FIRST, SECOND, THIRD = "debug-session-jan23", "approach-a", "session_of_debug"


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("debug", {FIRST, THIRD}),
        ("DEB", {FIRST, THIRD}),
        ("ebug", {FIRST, THIRD}),
        ("bu", {FIRST, THIRD}),
        ("23", {FIRST}),
        ("debug_session", {FIRST}),
        ("TOKEN-refresh", {FIRST}),
        ("NAÏVE", {SECOND}),
        ("tokenrefresh", set()),
        ("jan", {FIRST}),
        ("debug-session", {FIRST}),
        ("debug session", {FIRST, THIRD}),
        ("session debug", {FIRST, THIRD}),
        ("token auth", {FIRST}),
        ("refr tok", {FIRST}),
        ("project-x", {SECOND}),
        ("naive", {SECOND}),
        ("o'brien", {SECOND}),
        ("v1.2:rc", {THIRD}),
        ("debug approach", set()),
        ("", {FIRST, SECOND, THIRD}),
        (" \t\n\0", {FIRST, SECOND, THIRD}),
        ("-", set()),
        ("- debug", {FIRST, THIRD}),
    ],
)
def test_every_word_typed_stands_somewhere_in_the_window(library: SqliteCatalog, search: str, names: set[str]) -> None:
    assert found(library, search) == names


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ('"', set()),
        ('"debug', {FIRST, THIRD}),
        ('de"bug', set()),
        ('"plan"', {SECOND}),
        ("debug OR approach", set()),
        ("debug AND session", set()),
        ("debug NOT token", set()),
        ("NOT debug", set()),
        ("NEAR(debug session)", set()),
        ("name:debug", set()),
        ("{name description}:debug", set()),
        ("^debug", {FIRST, THIRD}),
        ("deb*", {FIRST, THIRD}),
        ("(debug", {FIRST, THIRD}),
        ("debug)", {FIRST, THIRD}),
        ("debug + session", {FIRST, THIRD}),
        ("deb\0ug", {FIRST, THIRD}),
        ("\ue000de", {FIRST, THIRD}),
        ("\ue001d\ue001", {FIRST, THIRD}),
        ("\ue000", set()),
        ("debug\0", {FIRST, THIRD}),
        ("' OR 1=1 --", set()),
        ("%", set()),
        ("_", set()),
        ("😀", set()),
        ("debug " * 500, {FIRST, THIRD}),
    ],
)
def test_nothing_typed_is_an_operator(library: SqliteCatalog, search: str, names: set[str]) -> None:
    assert found(library, search) == names


def test_a_search_holds_together_with_the_other_conditions(library: SqliteCatalog) -> None:
    page = library.list_windows(WindowQuery(search="session", tags=["wip"], sort_by=SortBy.NAME))
    assert [row.name for row in page.windows] == [THIRD]


def test_a_clone_is_found_by_its_own_words(library: SqliteCatalog) -> None:
    library.clone_window(FIRST, "for-alice", "caching strategies", ["shared"], at(9))
    assert found(library, "alice") == found(library, "strategies") == found(library, "shared") == {"for-alice"}
    library.delete_window("for-alice")
    assert found(library, "alice") == set()


def test_a_reader_finds_what_the_engine_finds(library: SqliteCatalog, path: Path) -> None:
    """The engine goes on meanwhile."""
    searches = ("debug", "DEB", "debug session", "refr tok", "naive", "project-x", "v1.2:rc", '"', "", "-", "nothing")
    with closing(SqliteCatalog.open_read_only(path)) as reader:
        for search in searches:
            assert reader.list_windows(WindowQuery(search=search)) == library.list_windows(WindowQuery(search=search))
        library.tag_window(FIRST, ["fresh"], ["auth"], None, at(9))
        library.delete_window(THIRD)
        for search in ("fresh", "auth", "session"):
            assert found(reader, search) == found(library, search)
        with pytest.raises(CWMError) as refused:
            reader.delete_window(FIRST)
        assert refused.value.code is Code.NOT_ALLOWED
