"""The embedded catalog keeps the contract of `catalog/base.py`: windows are committed, cloned, deleted and tagged."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.catalog.base import Binding, WindowQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from tests.cwm_connector.catalog.samples import PASSPORT, at, chain, chunk, content, names, new_window, sizes, totals

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
        lambda catalog: catalog.rename_window("none", "other", at(1)),
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


# --- names ---


def test_a_renamed_window_keeps_all_but_its_name(catalog: SqliteCatalog) -> None:
    before = catalog.commit_window(new_window("first", chain("a", 3), description="words", tags=["a"], parent="else"))
    catalog.clone_window("first", "child", None, None, at(2))
    catalog.bind(Binding("first", "session-2", b"1" * 32, at(3)))
    after = catalog.rename_window("first", "second", at(5))
    kept = replace(before, name="second", updated_at=at(5), thawed_at=at(3), unique_bytes=0)  # the child shares all
    assert after == kept == catalog.window("second")
    assert catalog.children("second") == ("child",)
    assert catalog.window("child").parent == "second"
    assert [binding.window_name for binding in catalog.bindings()] == ["second"]
    assert catalog.list_windows(WindowQuery(search="second")).windows == (after,)
    assert catalog.list_windows(WindowQuery(search="first")).total == 0
    with pytest.raises(CWMError, match="no window named 'first'"):
        catalog.window("first")
    catalog.check_integrity()


def test_a_taken_name_is_refused_and_a_window_is_never_its_own_parent(catalog: SqliteCatalog, path: Path) -> None:
    catalog.commit_window(new_window("first", chain("a", 1)))
    catalog.commit_window(new_window("second", chain("a", 2), parent="gone"))
    before = content(path)
    for taken in ("second", "first"):
        with pytest.raises(CWMError) as refused:
            catalog.rename_window("first", taken, at(5))
        assert refused.value.code is Code.WINDOW_EXISTS
    assert content(path) == before
    assert catalog.rename_window("second", "gone", at(6)).parent is None
    catalog.check_integrity()
