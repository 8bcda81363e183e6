"""Translate a `WindowQuery` to SQL for the tables of the embedded catalog.

The text of the SQL is fixed. What a user typed is only bound as a value. Pure functions.
"""

from dataclasses import dataclass
from typing import Final

from cwm_connector.catalog.base import SortBy, WindowQuery
from cwm_connector.catalog.words import match_expression

_ORDER: dict[SortBy, str] = {
    SortBy.NAME: "name",
    SortBy.CREATED_AT: "created_at",
    SortBy.TOKEN_COUNT: "token_count",
    SortBy.SIZE: "size_bytes",
}


_MATCHING: Final = "id IN (SELECT rowid FROM window_words WHERE window_words MATCH ?)"
"""The index of words is asked once. To ask it about one window after the other takes a millisecond for each."""
_MANY: Final = 1000


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and the values to bind."""

    sql: str
    values: tuple[object, ...]


def count_of(query: WindowQuery) -> Statement:
    """Return the statement that counts the windows on all pages."""
    where = _conditions(query, walk=True)
    if where.sql == f"WHERE +{_MATCHING}":
        # The index of words counts its own rows, which are as many, in a tenth of the time.
        return Statement("SELECT count(*) FROM window_words WHERE window_words MATCH ?", where.values)
    return Statement(f"SELECT count(*) FROM windows {where.sql}", where.values)


def page_of(query: WindowQuery, total: int) -> Statement:
    """Return the statement for the ids of the page's windows, in order. Equal values are in the order of commits.

    `total` windows meet the conditions. If they are many, an index gives them in order until the page is full. If they
    are few, they are sorted.
    """
    where = _conditions(query, walk=total > _MANY, in_order=total > _MANY)
    direction = "DESC" if query.descending else "ASC"
    order = f"ORDER BY {_ORDER[query.sort_by]} {direction}, id {direction}"
    return Statement(
        f"SELECT id FROM windows {where.sql} {order} LIMIT ? OFFSET ?", (*where.values, query.limit, query.offset)
    )


def _conditions(query: WindowQuery, *, walk: bool, in_order: bool = False) -> Statement:
    """Return the conditions. With `walk` SQLite does not begin with the words or the tags, nor `in_order` the model."""
    match = match_expression(query.search or "")
    hint = "+" if walk else ""
    given = [
        ("+model = ?" if in_order else "model = ?", query.model),
        ("session_id = ?", query.session_id),
        ("created_at > ?", query.created_after),
        ("created_at < ?", query.created_before),
        (f"{hint}{_MATCHING}", match),
        *((f"{hint}id IN (SELECT window_id FROM window_tags WHERE tag = ?)", tag) for tag in query.tags),
    ]
    used = [(condition, value) for condition, value in given if value is not None]
    if not used:
        return Statement("", ())
    return Statement("WHERE " + " AND ".join(text for text, _ in used), tuple(value for _, value in used))
