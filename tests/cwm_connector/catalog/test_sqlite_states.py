"""Random sequences of changes: references, sizes and orphans always equal those of a model made of plain sets."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cwm_connector.catalog.base import Catalog, ChunkRow
from cwm_connector.catalog.sqlite import SqliteCatalog
from cwm_connector.protocol import Code, CWMError
from cwm_connector.terms import ChunkKey
from tests.cwm_connector.catalog.samples import at, chunk, names, new_window, totals

UNIVERSE = {row.key: row for row in (chunk(f"chunk {n}", size_bytes=1 << n, tokens=16) for n in range(8))}
"""Sizes are powers of two: a sum tells which chunks are in it."""
CHAINS = st.lists(st.sampled_from(sorted(UNIVERSE)), unique=True, max_size=5)
KEPT = st.frozensets(st.sampled_from(sorted(UNIVERSE)), max_size=3)
TAGS = st.lists(st.sampled_from("abcd"), max_size=3)


def rows(keys: Any) -> list[ChunkRow]:
    return [UNIVERSE[key] for key in keys]


class Changes(RuleBasedStateMachine):
    windows = Bundle("windows")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.catalog: Catalog = SqliteCatalog.open(Path(self.folder.name) / "catalog.sqlite")
        self.chunks: dict[str, list[ChunkKey]] = {}
        self.snapshots: dict[str, int] = {}
        self.tags: dict[str, list[str]] = {}
        self.stored: set[ChunkKey] = set()
        self.made = 0

    def name(self) -> str:
        self.made += 1
        return f"w{self.made}"

    def held(self, *, without: str | None = None) -> set[ChunkKey]:
        return {key for name, keys in self.chunks.items() if name != without for key in keys}

    @rule(target=windows, keys=CHAINS, again=KEPT, tags=TAGS)
    def commit(self, keys: list[ChunkKey], again: frozenset[ChunkKey], tags: list[str]) -> str:
        """`again`: chunks stored once more, or beyond what the window refers to."""
        name = self.name()
        new = (set(keys) - self.stored) | again
        self.catalog.commit_window(new_window(name, rows(keys), stored=rows(new), tags=tags))
        self.chunks[name], self.snapshots[name], self.tags[name] = keys, self.made, list(dict.fromkeys(tags))
        self.stored |= new
        return name

    @rule(keys=CHAINS)
    def commit_without_storing(self, keys: list[ChunkKey]) -> None:
        missing = set(keys) - self.stored
        if not missing:
            return
        try:
            self.catalog.commit_window(new_window("refused", rows(keys), stored=[]))
        except CWMError as refused:
            assert refused.code is Code.CHUNK_MISSING
        else:
            raise AssertionError("a window over chunks that are not stored was committed")

    @rule(target=windows, source=windows, tags=st.none() | TAGS)
    def clone(self, source: str, tags: list[str] | None) -> str:
        name = self.name()
        self.catalog.clone_window(source, name, None, tags, at(self.made))
        self.chunks[name], self.snapshots[name] = self.chunks[source], self.snapshots[source]
        self.tags[name] = self.tags[source] if tags is None else list(dict.fromkeys(tags))
        return name

    @rule(name=consumes(windows), keep=KEPT)
    def delete(self, name: str, keep: frozenset[ChunkKey]) -> None:
        left = self.held(without=name)
        gone = [key for key in self.chunks[name] if key not in left]
        deleted = self.catalog.delete_window(name, keep)
        assert list(deleted.orphans) == rows(key for key in gone if key not in keep)
        assert deleted.shared == len(self.chunks[name]) - len(gone)
        self.stored -= set(gone) - keep
        del self.chunks[name], self.snapshots[name], self.tags[name]

    @rule(name=windows, add=TAGS, remove=TAGS)
    def tag(self, name: str, add: list[str], remove: list[str]) -> None:
        self.catalog.tag_window(name, add, remove, None, at(self.made))
        self.tags[name] = list(dict.fromkeys([*(tag for tag in self.tags[name] if tag not in remove), *add]))

    @rule(keep=KEPT)
    def sweep(self, keep: frozenset[ChunkKey]) -> None:
        swept = self.catalog.sweep_unreferenced(keep)
        assert set(swept) == set(rows(self.stored - self.held() - keep))
        self.stored -= {row.key for row in swept}

    @invariant()
    def every_window_is_the_models(self) -> None:
        assert names(self.catalog) == set(self.chunks)
        for name, keys in self.chunks.items():
            row = self.catalog.window(name)
            alone = set(keys) - self.held(without=name)
            assert row.unique_bytes == sum(UNIVERSE[key].size_bytes for key in alone)
            assert row.size_bytes == sum(UNIVERSE[key].size_bytes for key in keys)
            assert list(row.tags) == self.tags[name]
            assert list(self.catalog.chunks_of(name)) == rows(keys)

    @invariant()
    def the_totals_are_the_models(self) -> None:
        self.catalog.check_integrity()
        assert set(self.catalog.all_chunks()) == set(rows(self.stored))
        assert self.catalog.totals() == totals(
            windows=len(self.chunks),
            chunks=len(self.stored),
            stored_bytes=sum(UNIVERSE[key].size_bytes for key in self.stored),
            referenced_bytes=sum(UNIVERSE[key].size_bytes for keys in self.chunks.values() for key in keys),
        )

    def teardown(self) -> None:
        self.catalog.close()
        self.folder.cleanup()


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
