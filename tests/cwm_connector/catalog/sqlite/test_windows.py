"""The embedded catalog keeps the contract of `catalog/base.py`."""

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.catalog.base import Binding, Catalog, ChunkRow, SessionEvent, TierTotals, WindowQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.thaws import BINDINGS
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Claim, TierName
from tests.cwm_connector.catalog.samples import PASSPORT, at, chain, chunk, content, names, new_window, totals

DISK, REDIS = TierName.DISK, TierName.REDIS


def sizes(rows: list) -> int:
    return sum(row.size_bytes for row in rows)


def test_it_is_a_catalog(catalog: SqliteCatalog) -> None:
    promised: Catalog = catalog  # mypy's part of the test
    assert promised.totals() == totals(0, 0, 0, 0)


# --- commit ---


def test_a_committed_window_is_read_back_whole(catalog: SqliteCatalog) -> None:
    chunks = chain("a", 3)
    new = new_window(
        "first", chunks, description="all of it", tags=["debug", "auth"], parent="elsewhere", created_at=at(7)
    )
    committed = catalog.commit_window(new)
    assert committed == catalog.window("first")
    assert committed.name == "first"
    assert committed.description == "all of it"
    assert committed.tags == ("debug", "auth")
    assert (committed.model, committed.passport) == ("small", PASSPORT)
    assert (committed.session_id, committed.head, committed.parent) == ("session-1", "h1", "elsewhere")
    assert (committed.token_count, committed.restorable_tokens, committed.block_count) == (773, 768, 3)
    assert committed.size_bytes == committed.unique_bytes == sizes(chunks)
    assert (committed.created_at, committed.updated_at, committed.thawed_at) == (at(7), at(7), None)
    assert catalog.chunks_of("first") == tuple(chunks)
    assert catalog.token_ids_of("first") == new.token_ids


def test_a_window_outlives_its_connection(path: Path) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        committed = catalog.commit_window(new_window("first", chain("a", 3)))
    with closing(SqliteCatalog.open(path)) as catalog:
        assert catalog.window("first") == committed


def test_a_session_shorter_than_a_chunk_can_be_committed(catalog: SqliteCatalog) -> None:
    row = catalog.commit_window(new_window("short", []))
    assert (row.token_count, row.restorable_tokens, row.block_count, row.size_bytes, row.unique_bytes) == (
        5,
        0,
        0,
        0,
        0,
    )
    assert catalog.chunks_of("short") == ()


def test_chunks_stored_before_are_referred_to(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 3)))
    longer = chain("a", 5)
    row = catalog.commit_window(new_window("second", longer, stored=longer[3:]))
    assert catalog.chunks_of("second") == tuple(longer)
    assert (row.size_bytes, row.unique_bytes) == (sizes(longer), sizes(longer[3:]))
    assert catalog.totals() == totals(2, 5, sizes(longer), sizes(longer) + sizes(longer[:3]))


def test_a_chunk_that_two_freezes_stored_is_one(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 3)))
    catalog.commit_window(new_window("second", chain("a", 3)))
    assert catalog.all_chunks() == tuple(chain("a", 3))
    assert catalog.window("first").unique_bytes == catalog.window("second").unique_bytes == 0


def test_what_was_stored_beyond_the_chain_is_known_and_unreferenced(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 2), stored=chain("a", 3)))
    assert catalog.stored([row.key for row in chain("a", 3)]) == {row.key: row for row in chain("a", 3)}
    assert catalog.sweep_unreferenced() == tuple(chain("a", 3)[2:])


def test_a_taken_name_is_refused_and_nothing_changes(catalog: SqliteCatalog, path: Path) -> None:
    catalog.commit_window(new_window("first", chain("a", 3)))
    before = content(path)
    with pytest.raises(CWMError, match="another name") as refused:
        catalog.commit_window(new_window("first", chain("b", 3)))
    assert refused.value.code is Code.WINDOW_EXISTS
    assert content(path) == before


def test_a_chunk_that_is_not_stored_is_refused_and_nothing_changes(catalog: SqliteCatalog, path: Path) -> None:
    catalog.commit_window(new_window("first", chain("a", 3)))
    before = content(path)
    with pytest.raises(CWMError, match="freeze the session again") as refused:
        catalog.commit_window(new_window("second", chain("a", 5), stored=chain("a", 5)[4:]))
    assert refused.value.code is Code.CHUNK_MISSING
    assert refused.value.context == {"missing": 1}
    assert content(path) == before


@pytest.mark.parametrize(
    "impossible",
    [
        new_window("twice", [*chain("a", 2), *chain("a", 2)]),
        replace(new_window("cut", chain("a", 2)), token_ids=b"123"),
    ],
    ids=["a chunk twice", "a cut token id"],
)
def test_what_no_freeze_can_mean_is_refused(catalog: SqliteCatalog, impossible) -> None:
    with pytest.raises(CWMError) as refused:
        catalog.commit_window(impossible)
    assert refused.value.code is Code.INTERNAL
    assert names(catalog) == set()


def test_text_that_is_no_unicode_is_refused(catalog: SqliteCatalog) -> None:
    with pytest.raises(CWMError) as refused:
        catalog.commit_window(new_window("first", chain("a", 2), description="\ud800"))
    assert refused.value.code is Code.ARGUMENT
    assert catalog.totals() == totals(0, 0, 0, 0)


def test_names_differ_by_case(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 2)))
    catalog.commit_window(new_window("First", chain("b", 1), tags=["Debug"], model="Small"))
    assert catalog.window("First").block_count == 1
    assert catalog.list_windows(WindowQuery(tags=["debug"])).total == 0
    assert catalog.list_windows(WindowQuery(model="small")).total == 1


# --- clone ---


def test_a_clone_shares_every_chunk_and_inherits_the_rest(catalog: SqliteCatalog) -> None:
    stem = catalog.commit_window(new_window("stem", chain("a", 3), description="the stem", tags=["debug", "auth"]))
    clone = catalog.clone_window("stem", "branch", None, None, at(9))
    assert clone == replace(
        stem,
        name="branch",
        parent="stem",
        unique_bytes=0,
        created_at=at(9),
        updated_at=at(9),
        thawed_at=None,
        cloned=True,
    )
    assert catalog.window("stem").unique_bytes == 0
    assert catalog.chunks_of("branch") == catalog.chunks_of("stem")
    assert catalog.token_ids_of("branch") == catalog.token_ids_of("stem")
    assert catalog.totals() == totals(2, 3, stem.size_bytes, 2 * stem.size_bytes)


def test_a_clone_may_have_its_own_text_and_tags(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("stem", chain("a", 3), description="the stem", tags=["debug"]))
    clone = catalog.clone_window("stem", "branch", "", [], at(9))
    assert (clone.description, clone.tags) == ("", ())


def test_a_clone_of_a_clone_is_whole_without_both(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("stem", chain("a", 3)))
    catalog.clone_window("stem", "branch", None, None, at(1))
    catalog.clone_window("branch", "twig", None, None, at(2))
    assert catalog.delete_window("branch").orphans == ()
    assert catalog.delete_window("stem").orphans == ()
    twig = catalog.window("twig")
    assert (twig.parent, twig.unique_bytes) == ("branch", twig.size_bytes)
    assert catalog.chunks_of("twig") == tuple(chain("a", 3))
    assert catalog.delete_window("twig").orphans == tuple(chain("a", 3))


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("none", "new", Code.WINDOW_NOT_FOUND),
        ("stem", "taken", Code.WINDOW_EXISTS),
        ("stem", "stem", Code.WINDOW_EXISTS),
    ],
)
def test_a_clone_from_nowhere_or_onto_a_window_is_refused(
    catalog: SqliteCatalog, path: Path, source: str, target: str, code: Code
) -> None:
    catalog.commit_window(new_window("stem", chain("a", 3)))
    catalog.commit_window(new_window("taken", chain("b", 3)))
    before = content(path)
    with pytest.raises(CWMError) as refused:
        catalog.clone_window(source, target, None, None, at(1))
    assert refused.value.code is code
    assert content(path) == before


# --- delete ---


def test_a_deletion_lets_go_what_nobody_else_holds(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 3)))
    longer = chain("a", 5)
    catalog.commit_window(new_window("second", longer, stored=longer[3:]))
    deleted = catalog.delete_window("second")
    assert (deleted.orphans, deleted.shared) == (tuple(longer[3:]), 3)
    assert catalog.all_chunks() == tuple(longer[:3])
    assert catalog.window("first").unique_bytes == sizes(longer[:3])


def test_deleting_a_parent_leaves_its_children_whole(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("stem", chain("a", 3)))
    catalog.clone_window("stem", "branch", None, None, at(2))
    longer = chain("a", 4)
    catalog.commit_window(new_window("later", longer, stored=longer[3:], parent="stem", created_at=at(1)))
    assert catalog.children("stem") == ("later", "branch")
    deleted = catalog.delete_window("stem")
    assert (deleted.orphans, deleted.shared) == ((), 3)
    assert catalog.chunks_of("branch") == tuple(longer[:3])
    assert catalog.chunks_of("later") == tuple(longer)
    assert catalog.window("branch").parent == catalog.window("later").parent == "stem"
    assert catalog.children("stem") == ("later", "branch")


def test_a_deleted_name_is_free_again(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 3), tags=["old"], description="old words"))
    catalog.delete_window("first")
    catalog.commit_window(new_window("first", chain("b", 1)))
    assert catalog.window("first").tags == ()
    assert catalog.list_windows(WindowQuery(search="old")).total == 0


def test_kept_chunks_stay_until_they_are_swept(catalog: SqliteCatalog) -> None:
    chunks = chain("a", 3)
    catalog.commit_window(new_window("first", chunks))
    deleted = catalog.delete_window("first", keep=[chunks[1].key, chunks[2].key])
    assert (deleted.orphans, deleted.shared) == ((chunks[0],), 0)
    assert catalog.all_chunks() == tuple(chunks[1:])
    assert catalog.sweep_unreferenced(keep=[chunks[2].key]) == (chunks[1],)
    assert catalog.sweep_unreferenced() == (chunks[2],)
    assert catalog.sweep_unreferenced() == ()
    assert catalog.totals() == totals(0, 0, 0, 0)


def test_a_kept_chunk_can_be_committed_again(catalog: SqliteCatalog) -> None:
    chunks = chain("a", 2)
    catalog.commit_window(new_window("first", chunks))
    catalog.delete_window("first", keep=[row.key for row in chunks])
    catalog.commit_window(new_window("second", chunks, stored=[]))
    assert catalog.sweep_unreferenced() == ()
    assert catalog.chunks_of("second") == tuple(chunks)


def test_what_a_shared_chunk_frees_is_counted_for_the_last_holder(catalog: SqliteCatalog) -> None:
    """Three snapshots over one chunk: only when one is left does it belong to a window alone."""
    shared = chunk("shared", size_bytes=500)
    for n, name in enumerate(("one", "two", "three")):
        own = chunk(f"own {name}", size_bytes=10 + n)
        catalog.commit_window(new_window(name, [shared, own]))
    catalog.delete_window("two")
    assert [catalog.window(name).unique_bytes for name in ("one", "three")] == [10, 12]
    catalog.delete_window("one")
    assert catalog.window("three").unique_bytes == 512


@pytest.mark.parametrize(
    "call",
    [
        lambda catalog: catalog.window("none"),
        lambda catalog: catalog.delete_window("none"),
        lambda catalog: catalog.chunks_of("none"),
        lambda catalog: catalog.token_ids_of("none"),
        lambda catalog: catalog.tag_window("none", [], [], None, at(1)),
        lambda catalog: catalog.bind(Binding("none", "session-1", b"1" * 32, at(1))),
    ],
)
def test_an_unknown_window_is_named(catalog: SqliteCatalog, call) -> None:
    with pytest.raises(CWMError, match="no window named 'none'") as refused:
        call(catalog)
    assert refused.value.code is Code.WINDOW_NOT_FOUND


# --- tags ---


def test_tags_come_and_go_and_the_rest_stays(catalog: SqliteCatalog) -> None:
    before = catalog.commit_window(new_window("first", chain("a", 1), description="words", tags=["a", "b", "c"]))
    after = catalog.tag_window("first", ["d", "a", "c"], ["c", "b", "x"], None, at(5))
    assert after == replace(before, tags=("a", "d", "c"), updated_at=at(5))
    assert catalog.list_windows(WindowQuery(tags=["b"])).total == 0
    assert catalog.list_windows(WindowQuery(tags=["d"])).windows == (after,)


def test_a_description_can_be_changed_alone(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1), description="old words", tags=["a"]))
    after = catalog.tag_window("first", [], [], "fresh text", at(5))
    assert (after.description, after.tags) == ("fresh text", ("a",))
    assert catalog.list_windows(WindowQuery(search="old")).total == 0
    assert catalog.list_windows(WindowQuery(search="fresh")).total == 1


def test_too_many_tags_are_refused_and_nothing_changes(catalog: SqliteCatalog, path: Path) -> None:
    catalog.commit_window(new_window("first", chain("a", 1), tags=[f"t{n}" for n in range(30)]))
    before = content(path)
    with pytest.raises(CWMError) as refused:
        catalog.tag_window("first", ["u1", "u2", "u3"], [], "text", at(5))
    assert refused.value.code is Code.ARGUMENT
    assert content(path) == before


def test_a_clones_tags_are_its_own(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("stem", chain("a", 1), tags=["a"]))
    catalog.clone_window("stem", "branch", None, None, at(1))
    catalog.tag_window("branch", ["b"], ["a"], None, at(2))
    assert (catalog.window("stem").tags, catalog.window("branch").tags) == (("a",), ("b",))


# --- thaws and sessions ---


def test_a_thaw_is_recorded_with_its_window_and_session(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1), session_id="alice", created_at=at(1)))
    one = Binding("first", "bob", b"1" * 32, at(2))
    two = Binding("first", "alice", b"2" * 32, at(3))
    catalog.bind(one)
    catalog.bind(two)
    assert catalog.bindings() == (one, two)
    assert (catalog.window("first").thawed_at, catalog.window("first").updated_at) == (at(3), at(1))
    bob = catalog.session("bob")
    assert bob is not None
    assert (bob.event, bob.model, bob.token_count, bob.windows) == (SessionEvent.THAWED, "small", 261, ())
    alice = catalog.session("alice")
    assert alice is not None
    assert (alice.event, alice.created_at, alice.updated_at) == (SessionEvent.THAWED, at(1), at(3))
    assert alice.windows == ("first",)


def test_the_same_thaw_again_is_one_binding_with_the_later_time(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1)))
    catalog.bind(Binding("first", "bob", b"1" * 32, at(2)))
    catalog.bind(Binding("first", "bob", b"1" * 32, at(4)))
    assert catalog.bindings() == (Binding("first", "bob", b"1" * 32, at(4)),)


def test_bindings_end_with_their_window(catalog: SqliteCatalog) -> None:
    for name in ("first", "second"):
        catalog.commit_window(new_window(name, chain(name, 1)))
        catalog.bind(Binding(name, "bob", b"1" * 32, at(2)))
    catalog.delete_window("first")
    assert [binding.window_name for binding in catalog.bindings()] == ["second"]
    assert catalog.session("bob") is not None


def test_a_session_lists_what_was_frozen_from_it_and_no_clones(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("one", chain("a", 1), session_id="alice", created_at=at(1)))
    catalog.commit_window(new_window("two", chain("a", 2), session_id="alice", created_at=at(2)))
    catalog.clone_window("two", "copy", None, None, at(3))
    catalog.commit_window(new_window("other", chain("b", 1), session_id="bob", created_at=at(4)))
    alice = catalog.session("alice")
    assert alice is not None
    assert (alice.windows, alice.token_count, alice.event) == (("two", "one"), 517, SessionEvent.FROZEN)
    assert (alice.created_at, alice.updated_at) == (at(1), at(2))
    assert [row.session_id for row in catalog.sessions()] == ["bob", "alice"]
    assert catalog.sessions()[1] == alice
    assert catalog.session("carol") is None


def test_the_newest_bindings_are_kept(catalog: SqliteCatalog) -> None:
    """The one with the oldest time goes, whenever it was recorded; what was thawed stays known as thawed."""
    catalog.commit_window(new_window("first", chain("a", 1)))
    catalog.commit_window(new_window("second", chain("a", 1), stored=[]))
    for n in range(BINDINGS):
        catalog.bind(Binding("first", f"s{n}", n.to_bytes(32), at(1 + n)))
    late = Binding("second", "late", b"l" * 32, at(BINDINGS + 1))
    catalog.bind(late)
    catalog.bind(Binding("second", "early", b"e" * 32, at(0.5)))
    kept = catalog.bindings()
    assert len(kept) == BINDINGS
    assert (kept[0].session_id, kept[-1]) == ("s1", late)
    assert catalog.last_thaw_into("s0") is None
    assert catalog.window("first").thawed_at == at(BINDINGS)


def test_the_last_thaw_into_a_session_is_told(catalog: SqliteCatalog) -> None:
    for name in ("first", "second"):
        catalog.commit_window(new_window(name, chain(name, 1)))
    thaws = [
        Binding("first", "bob", b"1" * 32, at(2)),
        Binding("second", "bob", b"2" * 32, at(4)),
        Binding("first", "bob", b"3" * 32, at(3)),
        Binding("first", "carol", b"4" * 32, at(9)),
    ]
    for thaw in thaws:
        catalog.bind(thaw)
    assert catalog.last_thaw_into("bob") == thaws[1]
    assert catalog.last_thaw_into("nobody") is None
    catalog.delete_window("second")
    assert catalog.last_thaw_into("bob") == thaws[2]


# --- where chunks are ---


def placed(catalog: SqliteCatalog, rows: list[ChunkRow]) -> list[frozenset[TierName]]:
    stored = catalog.stored([row.key for row in rows])
    return [stored[row.key].tiers for row in rows]


def test_a_chunks_tiers_are_those_that_were_told(catalog: SqliteCatalog) -> None:
    chunks = chain("a", 4)
    catalog.commit_window(new_window("first", chunks))
    keys = [row.key for row in chunks]
    catalog.place(TierName.REDIS, keys[:3], [])
    catalog.place(TierName.DISK, [], keys[1:])
    catalog.place(TierName.REDIS, [keys[3], ChunkKey(b"unknown")], [keys[2]])
    assert placed(catalog, chunks) == [{DISK, REDIS}, {REDIS}, frozenset(), {REDIS}]
    assert catalog.chunks_of("first") == tuple(catalog.stored(keys).values()) == catalog.all_chunks()
    totals = catalog.totals()
    assert (totals.chunks, totals.stored_bytes) == (4, sizes(chunks))
    assert totals.tiers == {
        DISK: TierTotals(1, chunks[0].size_bytes),
        REDIS: TierTotals(3, sizes([chunks[0], chunks[1], chunks[3]])),
    }


def test_a_chunk_that_came_and_went_is_gone(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1)))
    catalog.place(TierName.DISK, [chain("a", 1)[0].key], [chain("a", 1)[0].key])
    assert placed(catalog, chain("a", 1)) == [frozenset()]


def test_memory_is_no_place_that_a_row_can_promise(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1)))
    with pytest.raises(CWMError) as refused:
        catalog.place(TierName.CPU, [chain("a", 1)[0].key], [])
    assert refused.value.code is Code.INTERNAL


def test_a_chunk_stored_again_keeps_its_claim_and_gains_the_tiers(catalog: SqliteCatalog) -> None:
    (mine,) = chain("a", 1)
    mine = replace(mine, claim=Claim("mine"))
    catalog.commit_window(new_window("first", [mine]))
    theirs = replace(mine, claim=Claim("theirs"), tiers=frozenset({REDIS}), size_bytes=7, tokens=7)
    catalog.commit_window(new_window("second", [theirs]))
    assert catalog.all_chunks() == (replace(mine, tiers=frozenset({DISK, REDIS})),)
    assert catalog.totals().tiers[REDIS] == TierTotals(1, mine.size_bytes)
    assert catalog.window("second").size_bytes == mine.size_bytes


def test_a_chunk_that_no_tier_holds_is_missing_until_it_is_stored_again(catalog: SqliteCatalog, path: Path) -> None:
    chunks = chain("a", 3)
    catalog.commit_window(new_window("first", chunks))
    catalog.place(TierName.DISK, [], [chunks[1].key])
    before = content(path)
    with pytest.raises(CWMError, match="1 of 3 chunks are not stored") as refused:
        catalog.commit_window(new_window("second", chunks, stored=[]))
    assert refused.value.code is Code.CHUNK_MISSING
    assert content(path) == before
    catalog.commit_window(new_window("second", chunks, stored=chunks[1:2]))
    assert placed(catalog, chunks) == [{DISK}] * 3


def test_a_walk_over_the_chunks_goes_on_where_it_stopped(catalog: SqliteCatalog) -> None:
    chunks = [row for name in "abc" for row in chain(name, 5)]
    catalog.commit_window(new_window("first", chunks))
    walked: list[ChunkRow] = []
    while rows := catalog.chunks_after(walked[-1].key if walked else None, 4):
        assert len(rows) == min(4, len(chunks) - len(walked))
        walked += rows
    assert walked == sorted(chunks, key=lambda row: row.key)


def test_chunks_are_ordered_by_the_last_freeze_or_thaw_of_their_windows(catalog: SqliteCatalog) -> None:
    old, shared, new, loose = chain("a", 4)
    catalog.commit_window(new_window("old", [old, shared], stored=[old, shared, loose], created_at=at(1)))
    catalog.commit_window(new_window("new", [shared, new], created_at=at(5)))
    assert catalog.chunks_by_use() == ((loose.key, 0), (old.key, at(1)), (shared.key, at(5)), (new.key, at(5)))
    catalog.clone_window("old", "copy", None, None, at(7))
    catalog.bind(Binding("copy", "bob", b"1" * 32, at(9)))
    catalog.tag_window("new", ["a"], [], None, at(20))
    assert catalog.chunks_by_use() == ((loose.key, 0), (new.key, at(5)), (old.key, at(9)), (shared.key, at(9)))
    catalog.delete_window("copy")
    assert dict(catalog.chunks_by_use()) == {loose.key: 0, old.key: at(1), shared.key: at(5), new.key: at(5)}


def test_the_windows_that_hold_a_chunk_are_named(catalog: SqliteCatalog) -> None:
    mine, shared, loose, unknown = chain("a", 4)
    catalog.commit_window(new_window("one", [mine, shared], stored=[mine, shared, loose]))
    catalog.commit_window(new_window("two", [shared], stored=[]))
    catalog.clone_window("one", "copy", None, None, at(1))
    assert catalog.windows_with([row.key for row in (mine, shared, loose, unknown)]) == {
        mine.key: ("one", "copy"),
        shared.key: ("one", "two", "copy"),
        loose.key: (),
        unknown.key: (),
    }


# --- the rest ---


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


def test_only_stored_chunks_are_reported_as_stored(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 2)))
    assert catalog.stored([row.key for row in chain("a", 4)]) == {row.key: row for row in chain("a", 2)}
    assert catalog.stored([]) == {}


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
