"""Find the windows of a `WindowQuery` in the tables of the embedded catalog.

The text of the SQL is fixed. What a user typed is only bound as a value. `page_ids` runs inside the caller's
transaction. The other functions are pure.

If few windows meet the conditions, one statement returns all of them, and they are sorted here. If they are many, one
statement counts those that it left, and another one follows the index of the order until the page is full.

The order of the tables in a statement is the order in which SQLite reads them, because each join is a CROSS JOIN. The
first table leaves fewest windows. The others are asked by the window's id:

    the windows that meet the conditions    a session -> tags, texts
                                            a tag -> windows -> other tags, texts
                                            a model or a time -> texts
                                            texts
    a page of many                          the index of the order -> tags, texts
"""

import sqlite3
from dataclasses import dataclass
from typing import Final

from cwm_connector.catalog.base import SortBy, WindowQuery
from cwm_connector.catalog.words import typed_words

_ORDER: dict[SortBy, tuple[str, str]] = {
    SortBy.NAME: ("name", "sqlite_autoindex_windows_1"),
    SortBy.CREATED_AT: ("created_at", "windows_by_created_at"),
    SortBy.TOKEN_COUNT: ("token_count", "windows_by_token_count"),
    SortBy.SIZE: ("size_bytes", "windows_by_size"),
}
"""The column and its index."""
_MANY: Final = 1000
"""More windows than that are not read at once."""
_TEXT_HAS: Final = "x.text GLOB '*' || ? || '*'"
"""GLOB is the fastest of SQLite's ways to look into a text. A folded word has none of its special characters."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The tables and the conditions of a statement, and the column with the window's id in the first table."""

    id: str
    sql: str
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and the values to bind."""

    sql: str
    values: tuple[object, ...]
    backwards: bool = False
    """The rows come in the opposite order."""


def page_ids(db: sqlite3.Connection, query: WindowQuery) -> tuple[list[int], int]:
    """Return the ids of the windows on the page, in order, and how many windows are on all pages.

    Equal values are in the order of commits.
    """
    if query.is_narrowed:
        few = some_of(query)
        rows = [(place, window) for window, place in db.execute(few.sql, few.values).fetchall()]
        if len(rows) <= _MANY:
            rows.sort(reverse=query.descending)
            return [window for _, window in rows][query.offset :][: query.limit], len(rows)
        count = count_of(query, after=rows[-1][1])
        (total,) = db.execute(count.sql, count.values).fetchone()
        total += len(rows)
    else:
        (total,) = db.execute("SELECT count(*) FROM windows").fetchone()
    page = page_of(query, total)
    ids = [window for (window,) in db.execute(page.sql, page.values).fetchall()]
    return ids[::-1] if page.backwards else ids, total


def some_of(query: WindowQuery) -> Statement:
    """Return the statement for the first windows that meet the conditions, with what they are ordered by.

    They come in the order of their ids.
    """
    column, _ = _ORDER[query.sort_by]
    found = _found(query, column=column)
    return Statement(f"SELECT w.id, w.{column} {found.sql} ORDER BY {found.id} LIMIT {_MANY + 1}", found.values)


def count_of(query: WindowQuery, after: int) -> Statement:
    """Return the statement that counts the windows that meet the conditions and came after the window `after`."""
    found = _found(query)
    return Statement(f"SELECT count(*) {found.sql} AND {found.id} > ?", (*found.values, after))


def page_of(query: WindowQuery, total: int) -> Statement:
    """Return the statement for the ids of the page's windows, of `total` that meet the conditions.

    The index of the order is followed from the end that is nearer to the page.
    """
    column, index = _ORDER[query.sort_by]
    size = max(0, min(query.limit, total - query.offset))
    after = total - query.offset - size
    backwards = size > 0 and after < query.offset
    found = _found(query, index=index)
    direction = "DESC" if query.descending is not backwards else "ASC"
    order = f"ORDER BY w.{column} {direction}, w.id {direction}"
    start = after if backwards else query.offset
    return Statement(f"SELECT w.id {found.sql} {order} LIMIT ? OFFSET ?", (*found.values, size, start), backwards)


def _found(query: WindowQuery, index: str | None = None, column: str | None = None) -> _Found:
    """Return the tables and the conditions, of which `column` needs the windows. With `index` it gives the order."""
    words = typed_words(query.search or "")
    in_windows = [
        (f"w.{condition}", value)
        for condition, value in (
            ("model = ?", query.model),
            ("session_id = ?", query.session_id),
            ("created_at > ?", query.created_after),
            ("created_at < ?", query.created_before),
        )
        if value is not None
    ]
    tags = list(query.tags)
    conditions: list[tuple[str, object]] = []
    if index is not None:
        first, tables = "w.id", [f"windows w INDEXED BY {index}"]
    elif tags and query.session_id is None:
        first, tables = "g.window_id", ["window_tags g"]
        conditions.append(("g.tag = ?", tags.pop(0)))
    elif words and not in_windows:
        first, tables = "x.window_id", ["window_texts x"]
    else:
        first, tables = "w.id", ["windows w"]
    if first != "w.id" and (in_windows or column):
        tables.append(f"windows w ON w.id = {first}")
    conditions += in_windows
    conditions += [(f"EXISTS (SELECT 1 FROM window_tags t WHERE t.tag = ? AND t.window_id = {first})", t) for t in tags]
    if words and first != "x.window_id":
        tables.append(f"window_texts x ON x.window_id = {first}")
    if words is not None:
        conditions += [(_TEXT_HAS, word) for word in words] or [("?", 0)]
    where = " AND ".join(condition for condition, _ in conditions)
    return _Found(
        id=first,
        sql=f"FROM {' CROSS JOIN '.join(tables)} {'WHERE ' if where else ''}{where}",
        values=tuple(value for _, value in conditions),
    )
