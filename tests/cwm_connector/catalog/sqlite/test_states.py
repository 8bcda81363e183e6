"""Random sequences of changes: references, tiers, sizes and orphans always equal those of a model of plain sets."""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cwm_connector.catalog.base import Binding, Catalog, CatalogTotals, ChunkRow, TierTotals
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros, TierName
from tests.cwm_connector.catalog.samples import at, chunk, names, new_window

UNIVERSE = {row.key: row for row in (chunk(f"chunk {n}", size_bytes=1 << n, tokens=16) for n in range(8))}
"""Sizes are powers of two: a sum tells which chunks are in it."""
CHAINS = st.lists(st.sampled_from(sorted(UNIVERSE)), unique=True, max_size=5)
KEPT = st.frozensets(st.sampled_from(sorted(UNIVERSE)), max_size=3)
TAGS = st.lists(st.sampled_from("abcd"), max_size=3)
DURABLE = st.sampled_from([TierName.DISK, TierName.REDIS])


def total(keys: Iterable[ChunkKey]) -> int:
    return sum(UNIVERSE[key].size_bytes for key in keys)


class Changes(RuleBasedStateMachine):
    windows = Bundle("windows")
    trashed = Bundle("trashed")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.catalog: Catalog = SqliteCatalog.open(Path(self.folder.name) / "catalog.sqlite")
        self.chunks: dict[str, list[ChunkKey]] = {}
        self.snapshots: dict[str, int] = {}
        self.tags: dict[str, list[str]] = {}
        self.stored: dict[ChunkKey, frozenset[TierName]] = {}
        self.used: dict[str, Micros] = {}
        self.trash: dict[str, list[ChunkKey]] = {}
        self.trashed_at: dict[str, Micros] = {}
        self.made = 0

    def name(self) -> str:
        self.made += 1
        return f"w{self.made}"

    def rows(self, keys: Iterable[ChunkKey]) -> list[ChunkRow]:
        return [replace(UNIVERSE[key], tiers=self.stored[key]) for key in keys]

    def missing(self, keys: Iterable[ChunkKey]) -> set[ChunkKey]:
        return {key for key in keys if not self.stored.get(key)}

    def held(self, *, without: str | None = None) -> set[ChunkKey]:
        everywhere = [*self.chunks.items(), *self.trash.items()]
        return {key for name, keys in everywhere if name != without for key in keys}

    @rule(target=windows, keys=CHAINS, again=KEPT, tags=TAGS, tier=DURABLE)
    def commit(self, keys: list[ChunkKey], again: frozenset[ChunkKey], tags: list[str], tier: TierName) -> str:
        """`again`: chunks stored once more, or beyond what the window refers to."""
        name = self.name()
        new = self.missing(keys) | again
        for key in new:
            self.stored[key] = self.stored.get(key, frozenset()) | {tier}
        stored = [replace(UNIVERSE[key], tiers=frozenset({tier})) for key in new]
        chunks = [UNIVERSE[key] for key in keys]
        self.catalog.commit_window(new_window(name, chunks, stored=stored, tags=tags, created_at=at(self.made)))
        self.chunks[name], self.snapshots[name], self.tags[name] = keys, self.made, list(dict.fromkeys(tags))
        self.used[name] = at(self.made)
        return name

    @rule(keys=CHAINS)
    def commit_without_storing(self, keys: list[ChunkKey]) -> None:
        if not self.missing(keys):
            return
        try:
            self.catalog.commit_window(new_window("refused", [UNIVERSE[key] for key in keys], stored=[]))
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
        self.used[name] = at(self.made)
        return name

    @rule(name=consumes(windows), keep=KEPT)
    def delete(self, name: str, keep: frozenset[ChunkKey]) -> None:
        left = self.held(without=name)
        gone = [key for key in self.chunks[name] if key not in left]
        deleted = self.catalog.delete_window(name, keep)
        assert list(deleted.orphans) == self.rows(key for key in gone if key not in keep)
        assert deleted.shared == len(self.chunks[name]) - len(gone)
        for key in set(gone) - keep:
            del self.stored[key]
        del self.chunks[name], self.snapshots[name], self.tags[name], self.used[name]

    @rule(target=trashed, name=consumes(windows))
    def put_into_the_trash(self, name: str) -> str:
        self.made += 1
        self.trashed_at[name] = self.catalog.trash.put(name, f"rm-{self.made}", at(self.made)).trashed_at
        self.trash[name] = self.chunks.pop(name)
        return name

    @rule(target=windows, name=consumes(trashed))
    def bring_back(self, name: str) -> str:
        assert self.catalog.trash.restore(name, None, at(self.made)) == (name,)
        self.chunks[name] = self.trash.pop(name)
        return name

    @rule(name=consumes(trashed), keep=KEPT)
    def purge(self, name: str, keep: frozenset[ChunkKey]) -> None:
        left = self.held(without=name)
        gone = [key for key in self.trash.pop(name) if key not in left]
        purged = self.catalog.trash.purge(name, self.trashed_at[name], keep)
        assert list(purged.orphans) == self.rows(key for key in gone if key not in keep)
        for key in set(gone) - keep:
            del self.stored[key]

    @rule(tier=DURABLE, came=KEPT, went=KEPT)
    def place(self, tier: TierName, came: frozenset[ChunkKey], went: frozenset[ChunkKey]) -> None:
        self.catalog.place(tier, sorted(came), sorted(went))
        for key in came & self.stored.keys():
            self.stored[key] |= {tier}
        for key in went & self.stored.keys():
            self.stored[key] -= {tier}

    @rule(name=windows)
    def thaw(self, name: str) -> None:
        self.made += 1
        self.catalog.bind(Binding(name, "session-2", bytes(32), at(self.made)))
        self.used[name] = at(self.made)

    @rule(name=windows, add=TAGS, remove=TAGS)
    def tag(self, name: str, add: list[str], remove: list[str]) -> None:
        self.catalog.tag_window(name, add, remove, None, at(self.made))
        self.tags[name] = list(dict.fromkeys([*(tag for tag in self.tags[name] if tag not in remove), *add]))

    @rule(keep=KEPT)
    def sweep(self, keep: frozenset[ChunkKey]) -> None:
        swept = self.catalog.sweep_unreferenced(keep)
        assert set(swept) == set(self.rows(self.stored.keys() - self.held() - keep))
        for row in swept:
            del self.stored[row.key]

    @invariant()
    def every_window_is_the_models(self) -> None:
        assert names(self.catalog) == set(self.chunks)
        for name, keys in self.chunks.items():
            row = self.catalog.window(name)
            alone = set(keys) - self.held(without=name)
            assert (row.size_bytes, row.unique_bytes) == (total(keys), total(alone))
            assert list(row.tags) == self.tags[name]
            assert list(self.catalog.chunks_of(name)) == self.rows(keys)

    @invariant()
    def every_chunk_is_the_models(self) -> None:
        everything = set(self.rows(self.stored))
        assert set(self.catalog.all_chunks()) == everything
        assert set(self.catalog.stored(sorted(UNIVERSE)).values()) == everything
        assert list(self.catalog.chunks_after(None, 9)) == sorted(everything, key=lambda row: row.key)
        holders = {key: {name for name, keys in self.chunks.items() if key in keys} for key in UNIVERSE}
        assert {key: set(held) for key, held in self.catalog.windows_with(sorted(UNIVERSE)).items()} == holders
        use = {row.key: at for row, at in self.catalog.uses_after(None, 9)}
        assert use == {key: max((self.used[name] for name in holders[key]), default=0) for key in self.stored}

    @invariant()
    def the_totals_are_the_models(self) -> None:
        self.catalog.check_integrity()
        on = {tier: [key for key, tiers in self.stored.items() if tier in tiers] for tier in TierName}
        assert self.catalog.totals() == CatalogTotals(
            windows=len(self.chunks),
            chunks=len(self.stored),
            stored_bytes=total(self.stored),
            referenced_bytes=sum(total(keys) for keys in (*self.chunks.values(), *self.trash.values())),
            tiers={tier: TierTotals(len(on[tier]), total(on[tier])) for tier in (TierName.DISK, TierName.REDIS)},
        )

    def teardown(self) -> None:
        self.catalog.close()
        self.folder.cleanup()


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
