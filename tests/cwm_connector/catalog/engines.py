"""The catalogs of engines that share one log. Each has a home and a replica of its own."""

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.catalog.shared.catalog import RedisCatalog
from cwm_connector.catalog.shared.follow import FollowLimits
from cwm_connector.catalog.shared.replica import Gone
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError

BRISK = FollowLimits(connect_s=0.5, call_s=0.5, read_s=0.2, pause_s=0.2, write_s=1.0, patience_s=0.2)
"""Short time-outs, for tests in which Redis fails."""
_LOCAL = ("notes", "about", "totals", "sqlite_stat1")
_numbers = itertools.count(1)


def code_of(call: Callable[[], object]) -> Code:
    """The code of the error that the call raises."""
    with pytest.raises(CWMError) as refused:
        call()
    return refused.value.code


def namespace() -> str:
    """Return a namespace that no other test uses."""
    return f"ns{next(_numbers)}"


class Engines:
    """Opens catalogs over one log; `gone` has what each was notified of, which others deleted."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.namespace = namespace()
        self.gone: dict[str, list[Gone]] = {}
        self.opened: list[RedisCatalog] = []

    def path(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name / "catalog.sqlite"

    def open(self, name: str, limits: FollowLimits | None = None, *, url: str | None = None) -> RedisCatalog:
        gone = self.gone.setdefault(name, [])
        catalog = RedisCatalog.open(
            url or self.url,
            self.namespace,
            self.path(name),
            home_id=name,
            on_gone=gone.append,
            limits=limits or FollowLimits(),
        )
        self.opened.append(catalog)
        return catalog

    def key(self, kind: str) -> str:
        return f"{self.namespace}:catalog:{{{self.namespace}}}:{kind}"


@contextmanager
def engines(folder: Path, url: str) -> Iterator[Engines]:
    """Close all catalogs at the end, and check that every replica is consistent."""
    made = Engines(folder, url)
    try:
        yield made
    finally:
        for catalog in made.opened:
            catalog.close()
    for name in made.gone:
        with closing(SqliteCatalog.open(made.path(name))) as replica:
            replica.check_integrity()


def shared_content(path: Path) -> dict[str, Any]:
    """Return the rows that have to be equal in all replicas that have applied the same records."""
    with closing(sqlite3.connect(path)) as raw:
        raw.text_factory = bytes
        tables = [
            name.decode()
            for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            if name.decode() not in _LOCAL
        ]
        content = {name: sorted(raw.execute(f"SELECT * FROM {name}"), key=repr) for name in tables}
        content["chunks"] = raw.execute(
            "SELECT id, key, tokens, size_bytes, claim, refs, owners FROM chunks"
        ).fetchall()
        return content
