"""`WindowQuery` as SQL over the embedded catalog's tables.

What a user typed is only ever bound as a value; the texts below are all the SQL there is.
"""

import re
from dataclasses import dataclass

from cwm_connector.catalog.base import SortBy, WindowQuery

_ORDER: dict[SortBy, str] = {
    SortBy.NAME: "name",
    SortBy.CREATED_AT: "created_at",
    SortBy.TOKEN_COUNT: "token_count",
    SortBy.SIZE: "size_bytes",
}


@dataclass(frozen=True, slots=True)
class Statement:
    sql: str
    values: tuple[object, ...]


def count_of(query: WindowQuery) -> Statement:
    """How many windows the conditions leave, whatever the page."""
    where = _conditions(query)
    return Statement(f"SELECT count(*) FROM windows {where.sql}", where.values)


def page_of(query: WindowQuery) -> Statement:
    """The ids of the page's windows, in order; equal values are ordered by the time of their commit."""
    where = _conditions(query)
    direction = "DESC" if query.descending else "ASC"
    order = f"ORDER BY {_ORDER[query.sort_by]} {direction}, id {direction}"
    return Statement(
        f"SELECT id FROM windows {where.sql} {order} LIMIT ? OFFSET ?", (*where.values, query.limit, query.offset)
    )


def _conditions(query: WindowQuery) -> Statement:
    match = match_expression(query.search or "")
    given = [
        ("model = ?", query.model),
        ("session_id = ?", query.session_id),
        ("created_at > ?", query.created_after),
        ("created_at < ?", query.created_before),
        ("id IN (SELECT rowid FROM window_words WHERE window_words MATCH ?)", match),
        *(("id IN (SELECT window_id FROM window_tags WHERE tag = ?)", tag) for tag in query.tags),
    ]
    held = [(condition, value) for condition, value in given if value is not None]
    if not held:
        return Statement("", ())
    return Statement("WHERE " + " AND ".join(text for text, _ in held), tuple(value for _, value in held))


def match_expression(search: str) -> str | None:
    """The full-text query in which every word typed must begin a word of the window; None if no word was typed.

    Each word is quoted, so that nothing in it is an operator. Inside the quotes the tokenizer cuts it as it cut the
    names: `debug-session` finds `debug-session-jan23` and no window in which the two words stand apart.
    """
    # NUL would end the expression for SQLite, in the middle of a quoted word.
    words = re.split(r"[\s\0]+", search)
    quoted = ['"' + word.replace('"', '""') + '"*' for word in words if word]
    return " ".join(quoted) or None
