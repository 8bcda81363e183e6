"""The embedded catalog keeps the contract of `catalog/base.py`: its threads, its notes and an empty catalog.

test_windows.py, test_thaws.py and test_chunks.py test the rest. The shared catalog passes the same tests, see
shared/test_contract.py.
"""

import threading
from contextlib import closing
from pathlib import Path

from cwm_connector.catalog.base import Catalog
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import CWMError
from tests.cwm_connector.catalog.samples import totals


def test_it_is_a_catalog(catalog: SqliteCatalog) -> None:
    promised: Catalog = catalog  # mypy's part of the test
    assert promised.totals() == totals(0, 0, 0, 0)


def test_a_note_is_kept_over_a_restart_until_it_is_forgotten(path: Path) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.note("cursor", "a")
        catalog.note("other", "x")
        catalog.note("cursor", "b'; --")
    with closing(SqliteCatalog.open(path)) as catalog:
        assert (catalog.noted("cursor"), catalog.noted("other"), catalog.noted("none")) == ("b'; --", "x", None)
        catalog.note("cursor", None)
        catalog.note("none", None)
        assert (catalog.noted("cursor"), catalog.noted("other")) == (None, "x")


def test_another_thread_is_refused(catalog: SqliteCatalog) -> None:
    refusals: list[BaseException] = []

    def use() -> None:
        try:
            catalog.totals()
        except Exception as problem:
            refusals.append(problem)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    (refusal,) = refusals
    assert isinstance(refusal, CWMError)
    assert "thread" in refusal.message
