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
    row = db.execute("SELECT * FROM totals").fetchone()
    if row is None or seal("totals", *row[:-1]) != row[-1]:
        raise damaged("the totals")
    windows, referenced, chunks, stored, *tiers, _ = row
    disk, redis = TierTotals(*tiers[:2]), TierTotals(*tiers[2:])
    return CatalogTotals(windows, chunks, stored, referenced, {TierName.DISK: disk, TierName.REDIS: redis})


@contextmanager
def counting(db: sqlite3.Connection) -> Iterator[None]:
    """Check the totals before the changes of a transaction, and seal them after the changes.

    Raises `Code.CORRUPT` if they were damaged before. They are not sealed then.
    """
    read_totals(db)
    yield
    *fields, _ = db.execute("SELECT * FROM totals").fetchone()
    digest = seal("totals", *fields)
    db.execute("UPDATE totals SET digest = ?1 WHERE digest != ?1", (digest,))
