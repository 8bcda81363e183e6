"""The catalog's trash keeps the contract of `catalog/trash/base.py`: a window in it is no window, and can come back."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.catalog.base import BEFORE_ALL, Binding, OpenWindows, Proof, WindowQuery
from cwm_connector.catalog.session_pages import SessionQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.trash.base import TrashedWindow
from cwm_connector.core.errors import Code, CWMError
from tests.cwm_connector.catalog.samples import at, chain, content, names, new_window, sizes

EVERYWHERE = OpenWindows(after=BEFORE_ALL)


def refused(call) -> CWMError:
    with pytest.raises(CWMError) as problem:
        call()
    return problem.value


def test_a_window_in_the_trash_is_found_nowhere_and_its_name_is_free(catalog: SqliteCatalog) -> None:
    chunks = chain("a", 3)
    catalog.commit_window(new_window("first", chunks, tags=["t"], description="words"))
    catalog.bind(Binding("first", "session-2", b"1" * 32, at(1)))
    put = catalog.trash.put("first", "rm-1", at(2))
    assert put == TrashedWindow("first", 773, sizes(chunks), at(2), "rm-1")
    assert refused(lambda: catalog.window("first")).code is Code.WINDOW_NOT_FOUND
    assert names(catalog) == set()
    for query in (WindowQuery(search="words"), WindowQuery(tags=["t"]), WindowQuery(session_id="session-1")):
        assert catalog.list_windows(query).total == 0
    assert catalog.bindings() == ()
    assert not catalog.is_open(chunks[0].key, EVERYWHERE)
    assert catalog.open_windows_with(chunks[0].key, EVERYWHERE, 9) == ()
    assert catalog.windows_with([chunks[0].key]) == {chunks[0].key: ()}
    assert {session.windows for session in catalog.sessions(SessionQuery()).sessions} == {()}
    assert catalog.totals().windows == 0
    assert catalog.commit_window(new_window("first", chain("b", 1))).name == "first"


def test_the_trash_holds_its_chunks_against_every_sweep(catalog: SqliteCatalog) -> None:
    chunks = chain("a", 3)
    catalog.commit_window(new_window("first", chunks))
    catalog.clone_window("first", "twin", None, None, at(1))
    catalog.trash.put("first", "rm-1", at(2))
    assert catalog.delete_window("twin").orphans == ()
    assert catalog.sweep_unreferenced() == ()
    assert set(catalog.all_chunks()) == set(chunks)
    assert catalog.totals().stored_bytes == catalog.totals().referenced_bytes == sizes(chunks)


def test_a_window_comes_back_as_it_was_but_for_its_thaws(catalog: SqliteCatalog) -> None:
    before = catalog.commit_window(new_window("first", chain("a", 3), tags=["t"], description="words", parent="stem"))
    ids, proof = catalog.token_ids_of("first"), Proof(token_id=7, logprob=-0.3, taken_at=at(1))
    catalog.add_proof("first", proof)
    catalog.bind(Binding("first", "session-2", b"1" * 32, at(1)))
    catalog.trash.put("first", "rm-1", at(2))
    followed = []
    catalog.follow_beginnings(lambda key, tokens: followed.append((key, tokens)))
    assert followed == []
    assert catalog.trash.restore(None, None, at(3)) == ("first",)
    assert catalog.window("first") == replace(before, thawed_at=at(1))
    assert (catalog.token_ids_of("first"), catalog.proof_of("first")) == (ids, proof)
    assert catalog.chunks_of("first") == tuple(chain("a", 3))
    assert followed == [(chain("a", 1)[0].key, 256)]
    assert catalog.list_windows(WindowQuery(search="words", tags=["t"])).total == 1
    assert catalog.bindings() == ()
    assert catalog.trash.listed() == ()


def test_undo_brings_back_the_last_command_and_then_the_one_before(catalog: SqliteCatalog) -> None:
    for name in ("a", "b", "c"):
        catalog.commit_window(new_window(name, chain(name, 1)))
    catalog.trash.put("a", "rm-1", at(1))
    catalog.trash.put("b", "rm-2", at(2))
    catalog.trash.put("c", "rm-2", at(3))
    assert [each.name for each in catalog.trash.listed()] == ["a", "b", "c"]
    assert catalog.trash.restore(None, None, at(4)) == ("b", "c")
    assert catalog.trash.restore(None, None, at(5)) == ("a",)
    problem = refused(lambda: catalog.trash.restore(None, None, at(6)))
    assert (problem.code, problem.message) == (
        Code.WINDOW_NOT_FOUND,
        "the trash is empty, so there is nothing to bring back",
    )


def test_of_several_windows_of_one_name_the_newest_comes_back(catalog: SqliteCatalog) -> None:
    for number in (1, 2):
        catalog.commit_window(new_window("first", chain(f"v{number}", number)))
        catalog.trash.put("first", f"rm-{number}", at(number))
    assert catalog.trash.restore("first", None, at(3)) == ("first",)
    assert catalog.window("first").block_count == 2
    assert catalog.trash.restore("first", "older", at(4)) == ("older",)
    assert (catalog.window("older").block_count, catalog.window("older").updated_at) == (1, at(4))
    assert "cwm undo --list" in refused(lambda: catalog.trash.restore("first", None, at(5))).message


def test_a_name_that_is_taken_again_brings_nothing_back(catalog: SqliteCatalog, path: Path) -> None:
    for name in ("a", "b"):
        catalog.commit_window(new_window(name, chain(name, 1)))
        catalog.trash.put(name, "rm-1", at(1))
    catalog.commit_window(new_window("b", chain("new", 1)))
    before = content(path)
    problem = refused(lambda: catalog.trash.restore(None, None, at(2)))
    assert problem.code is Code.WINDOW_EXISTS
    assert "cwm undo b --as OTHER" in problem.message
    assert content(path) == before


def test_what_is_purged_lets_go_of_the_chunks_that_nobody_else_holds(catalog: SqliteCatalog) -> None:
    long, short = chain("a", 3), chain("a", 1)
    catalog.commit_window(new_window("long", long))
    catalog.commit_window(new_window("short", short, stored=[]))
    catalog.trash.put("long", "rm-1", at(1))
    purged = catalog.trash.purge("long", at(1), keep=[long[1].key])
    assert purged.orphans == (long[2],)
    assert set(catalog.all_chunks()) == set(long[:2])
    assert catalog.sweep_unreferenced() == (long[1],)
    assert refused(lambda: catalog.trash.purge("long", at(1))).code is Code.WINDOW_NOT_FOUND


def test_children_keep_the_parents_name_and_follow_a_new_one(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("stem", chain("a", 1)))
    for name in ("leaf", "twig"):
        catalog.clone_window("stem", name, None, None, at(1))
    catalog.trash.put("twig", "rm-1", at(2))
    catalog.rename_window("stem", "trunk", at(3))
    catalog.trash.put("trunk", "rm-2", at(4))
    assert catalog.window("leaf").parent == "trunk"
    assert catalog.trash.restore("twig", None, at(5)) == ("twig",)
    assert catalog.window("twig").parent == "trunk"
    catalog.trash.put("twig", "rm-3", at(6))
    catalog.trash.restore("twig", "trunk", at(7))
    assert catalog.window("trunk").parent is None


def test_the_session_of_a_window_that_comes_back_is_known_again(catalog: SqliteCatalog, monkeypatch) -> None:
    monkeypatch.setattr("cwm_connector.catalog.sqlite.thaws.SESSIONS", 1)
    catalog.commit_window(new_window("first", chain("a", 1), session_id="old"))
    catalog.commit_window(new_window("second", chain("b", 1), session_id="new", created_at=at(9)))
    catalog.trash.put("first", "rm-1", at(10))
    assert catalog.session("old") is None
    catalog.trash.restore(None, None, at(11))
    known = catalog.session("old")
    assert known is not None and known.windows == ("first",)


def test_the_trash_outlives_its_connection(path: Path) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("first", chain("a", 2)))
        catalog.trash.put("first", "rm-1", at(1))
    with closing(SqliteCatalog.open(path)) as catalog:
        assert catalog.trash.restore(None, None, at(2)) == ("first",)
        catalog.check_integrity()
