"""`WindowQuery` as SQL over the embedded catalog's tables.

What a user typed is only ever bound as a value; the texts below are all the SQL there is.
"""

import re
from dataclasses import dataclass

from cwm_connector.catalog.base import SortBy, WindowQuery

_ORDER: dict[SortBy, str] = {
    SortBy.NAME: "w.name",
    SortBy.CREATED_AT: "w.created_at",
    SortBy.TOKEN_COUNT: "s.token_count",
    SortBy.SIZE: "s.size_bytes",
}
_FROM = "FROM windows w JOIN snapshots s ON s.id = w.snapshot_id"


@dataclass(frozen=True, slots=True)
class Statement:
    sql: str
    values: tuple[object, ...]


def count_of(query: WindowQuery) -> Statement:
    """How many windows the conditions leave, whatever the page."""
    where = _conditions(query)
    # Without a model there is nothing to ask the snapshots for, and counting is twice as fast.
    source = _FROM if query.model is not None else "FROM windows w"
    return Statement(f"SELECT count(*) {source} {where.sql}", where.values)


def page_of(query: WindowQuery) -> Statement:
    """The ids of the page's windows, in order; equal values are ordered by the time of their commit."""
    where = _conditions(query)
    direction = "DESC" if query.descending else "ASC"
    return Statement(
        f"SELECT w.id {_FROM} {where.sql} ORDER BY {_ORDER[query.sort_by]} {direction}, w.id {direction} LIMIT ? OFFSET ?",
        (*where.values, query.limit, query.offset),
    )


def _conditions(query: WindowQuery) -> Statement:
    match = match_expression(query.search or "")
    given = [
        ("s.model = ?", query.model),
        ("w.session_id = ?", query.session_id),
        ("w.created_at > ?", query.created_after),
        ("w.created_at < ?", query.created_before),
        ("w.id IN (SELECT rowid FROM window_words WHERE window_words MATCH ?)", match),
        *(("w.id IN (SELECT window_id FROM window_tags WHERE tag = ?)", tag) for tag in query.tags),
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
