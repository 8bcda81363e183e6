"""The totals of the embedded catalog, one row that triggers keep up to date and every transaction seals.

The functions run inside the caller's transaction.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from cwm_connector.catalog.base import CatalogTotals, TierTotals
from cwm_connector.catalog.sqlite.rows import damaged, seal
from cwm_connector.core.types import TierName


def read_totals(db: sqlite3.Connection) -> CatalogTotals:
    """Return the totals. Raises `Code.CORRUPT` if the row is damaged."""
    windows, referenced, chunks, stored, *tiers = _fields(db)
    counted = {TierName.DISK: TierTotals(*tiers[:2]), TierName.REDIS: TierTotals(*tiers[2:])}
    by_tier = {tier: counted.get(tier) or _count(db, tier) for tier in TierName.durable()}
    return CatalogTotals(windows, chunks, stored, referenced, by_tier)


def _fields(db: sqlite3.Connection) -> tuple[int, ...]:
    row = db.execute("SELECT * FROM totals").fetchone()
    if row is None or seal("totals", *row[:-1]) != row[-1]:
        raise damaged("the totals")
    return tuple(row[:-1])


def _count(db: sqlite3.Connection, tier: TierName) -> TierTotals:
    """Count what a tier without columns of its own holds. Reads every chunk's row."""
    sql = "SELECT count(*), ifnull(sum(size_bytes), 0) FROM chunks WHERE tiers & ?"
    return TierTotals(*db.execute(sql, (tier.catalog_bit,)).fetchone())


@contextmanager
def counting(db: sqlite3.Connection) -> Iterator[None]:
    """Check the totals before the changes of a transaction, and seal them after the changes.

    Raises `Code.CORRUPT` if they were damaged before. They are not sealed then.
    """
    _fields(db)
    yield
    *fields, _ = db.execute("SELECT * FROM totals").fetchone()
    digest = seal("totals", *fields)
    db.execute("UPDATE totals SET digest = ?1 WHERE digest != ?1", (digest,))
