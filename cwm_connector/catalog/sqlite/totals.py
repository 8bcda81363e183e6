"""The one row of totals in the embedded catalog: its triggers count, its writer seals."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from cwm_connector.catalog.base import CatalogTotals, TierTotals
from cwm_connector.catalog.sqlite.rows import damaged, seal
from cwm_connector.core.types import TierName


def read_totals(db: sqlite3.Connection) -> CatalogTotals:
    """Raises: CWM-4004."""
    row = db.execute("SELECT * FROM totals").fetchone()
    if row is None or seal("totals", *row[:-1]) != row[-1]:
        raise damaged("the totals")
    windows, referenced, chunks, stored, *tiers, _ = row
    disk, redis = TierTotals(*tiers[:2]), TierTotals(*tiers[2:])
    return CatalogTotals(windows, chunks, stored, referenced, {TierName.DISK: disk, TierName.REDIS: redis})


@contextmanager
def counting(db: sqlite3.Connection) -> Iterator[None]:
    """Around all changes of a transaction. Raises: CWM-4004 if the totals were damaged before, and seals nothing."""
    read_totals(db)
    yield
    *fields, _ = db.execute("SELECT * FROM totals").fetchone()
    digest = seal("totals", *fields)
    db.execute("UPDATE totals SET digest = ?1 WHERE digest != ?1", (digest,))
