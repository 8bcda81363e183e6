"""The embedded catalog keeps the contract of `catalog/base.py`: thaws and sessions are recorded."""

from dataclasses import replace
from typing import Any

import pytest

from cwm_connector.catalog.base import Binding, Proof
from cwm_connector.catalog.session_pages import SessionEvent, SessionQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.thaws import BINDINGS
from cwm_connector.core.errors import CWMError
from tests.cwm_connector.catalog.samples import at, chain, new_window

PROOF = Proof(token_id=7, logprob=-0.1 - 2**-24, taken_at=at(2))


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
    page = catalog.sessions(SessionQuery())
    assert ([row.session_id for row in page.sessions], page.total) == (["bob", "alice"], 2)
    assert page.sessions[1] == alice
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


def test_a_window_has_the_last_proof_that_was_stored_to_the_last_bit(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1)))
    assert catalog.proof_of("first") is None
    catalog.add_proof("first", replace(PROOF, token_id=8))
    catalog.add_proof("first", PROOF)
    assert catalog.proof_of("first") == PROOF
    assert "token_id" not in repr(PROOF), "a token in a log"
    for call in (catalog.proof_of, lambda name: catalog.add_proof(name, PROOF)):
        with pytest.raises(CWMError, match="CWM-2002"):
            call("none")


def test_a_proof_is_its_snapshots_and_goes_with_the_last_window(catalog: SqliteCatalog) -> None:
    catalog.commit_window(new_window("first", chain("a", 1), proof=PROOF))
    catalog.clone_window("first", "copy", None, None, at(3))
    catalog.commit_window(new_window("second", chain("a", 1), stored=[]))
    catalog.delete_window("first")
    assert (catalog.proof_of("copy"), catalog.proof_of("second")) == (PROOF, None)
    catalog.delete_window("copy")
    catalog.commit_window(new_window("third", chain("a", 1), stored=[]))
    assert catalog.proof_of("third") is None


def ids(catalog: SqliteCatalog, **query: Any) -> tuple[list[str], int]:
    page = catalog.sessions(SessionQuery(**query))
    return [row.session_id for row in page.sessions], page.total


def test_sessions_are_listed_page_by_page(catalog: SqliteCatalog) -> None:
    for n in range(6):
        model = ("small", "large")[n % 2]
        catalog.commit_window(new_window(f"w{n}", chain("a", 1), session_id=f"s{n}", model=model, created_at=at(n)))
    catalog.bind(Binding("w0", "s1", b"1" * 32, at(9)))
    assert ids(catalog) == (["s1", "s5", "s4", "s3", "s2", "s0"], 6)
    assert ids(catalog, limit=2, offset=2) == (["s4", "s3"], 6)
    assert ids(catalog, event=SessionEvent.THAWED) == (["s1"], 1)
    assert ids(catalog, model="large") == (["s5", "s3"], 2)  # s1 is now as the window that was thawed into it
    assert ids(catalog, without=["s4", "s5", "nobody"], limit=3) == (["s1", "s3", "s2"], 4)
    assert ids(catalog, limit=0) == ([], 6)
    assert set(catalog.sessions_of(["s2", "nobody", "s4"])) == {"s2", "s4"}


def test_sessions_without_windows_and_thaws_are_forgotten_beyond_the_newest(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_connector.catalog.sqlite.thaws.SESSIONS", 3)
    monkeypatch.setattr("cwm_connector.catalog.sqlite.thaws.BINDINGS", 5)
    for n in range(3):
        catalog.commit_window(new_window(f"w{n}", chain("a", 1), session_id=f"frozen-{n}", created_at=at(n)))
    for n in range(20):
        catalog.bind(Binding("w0", f"thawed-{n}", n.to_bytes(32), at(10 + n)))
    assert set(ids(catalog)[0]) == {f"frozen-{n}" for n in range(3)} | {f"thawed-{n}" for n in range(15, 20)}
    for n in range(3):
        catalog.delete_window(f"w{n}")
    assert ids(catalog)[0] == ["thawed-19", "thawed-18", "thawed-17"]
    catalog.commit_window(new_window("new", chain("a", 1), session_id="new", created_at=at(50)))
    assert ids(catalog)[0] == ["new", "thawed-19", "thawed-18"]
