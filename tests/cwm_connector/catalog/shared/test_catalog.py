"""Several engines, one catalog: each sees the changes of the others, once they are durable."""

import shutil
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.catalog.base import Binding, Origin, Proof, WindowQuery
from cwm_connector.catalog.shared.changes import Commit, record_after
from cwm_connector.catalog.shared.follow import FollowLimits
from cwm_connector.catalog.shared.log import RedisLog
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.redis import RedisLink
from tests.cwm_connector.catalog.engines import BRISK, Engines, code_of, engines, shared_content
from tests.cwm_connector.catalog.samples import at, chain, names, new_window
from tests.support.redis_server import RedisServer, redis_server

PROOF = Proof(token_id=7, logprob=-0.3, taken_at=at(3))
ORIGIN = Origin(exported_as="w", frozen_from="alice", frozen_at=at(-9), ranks=2)
BOTH = frozenset({TierName.DISK, TierName.REDIS})


def stored_in(tiers: frozenset[TierName], name: str, count: int) -> list:
    return [replace(row, tiers=tiers) for row in chain(name, count)]


# --- one catalog ---


def test_what_one_engine_commits_the_other_lists_at_once(shared: Engines) -> None:
    a, b = shared.open("a"), shared.open("b")
    committed = a.commit_window(new_window("first", stored_in(BOTH, "x", 3), tags=["debug"], description="all of it"))
    assert b.window("first") == committed
    assert b.list_windows(WindowQuery(search="all", tags=["debug"])).windows == (committed,)
    assert b.token_ids_of("first") == a.token_ids_of("first")
    assert [row.key for row in b.chunks_of("first")] == [row.key for row in a.chunks_of("first")]


def test_every_kind_of_change_arrives(shared: Engines) -> None:
    a, b = shared.open("a"), shared.open("b")
    a.commit_window(new_window("stem", stored_in(BOTH, "x", 3), origin=ORIGIN))
    b.clone_window("stem", "branch", "cloned", None, at(1))
    a.tag_window("branch", ["hot"], [], "tagged", at(2))
    b.bind(Binding("branch", "bob", b"1" * 32, at(3)))
    b.add_proof("branch", PROOF)
    a.rename_window("branch", "limb", at(4))
    b.rename_window("limb", "branch", at(4))
    a.delete_window("stem")
    b.commit_window(new_window("last", stored_in(BOTH, "y", 2)))
    b.delete_window("last", keep=[row.key for row in chain("y", 2)])
    a.sweep_unreferenced()
    for number, name in enumerate(("thrown", "kept")):
        a.commit_window(new_window(name, stored_in(BOTH, "z", 1 + number)))
        b.trash.put(name, f"rm-{number}", at(5))
    a.trash.restore("kept", "back", at(6))
    b.trash.purge("thrown", at(5))
    a.delete_window("back")
    b.catch_up()
    assert shared_content(shared.path("a")) == shared_content(shared.path("b"))
    assert names(a) == {"branch"}
    assert a.bindings() == (Binding("branch", "bob", b"1" * 32, at(3)),)
    assert a.proof_of("branch") == PROOF
    assert (b.window("branch").tags, b.window("branch").description) == (("hot",), "tagged")
    assert a.window("branch").origin == b.window("branch").origin == ORIGIN
    assert len(a.all_chunks()) == len(b.all_chunks()) == 3


def test_a_name_that_another_engine_took_is_refused(shared: Engines) -> None:
    a, b = shared.open("a"), shared.open("b")
    a.commit_window(new_window("first", chain("x", 1)))
    assert code_of(lambda: b.commit_window(new_window("first", chain("y", 1)))) is Code.WINDOW_EXISTS
    b.delete_window("first")
    assert code_of(lambda: a.tag_window("first", [], [], None, at(1))) is Code.WINDOW_NOT_FOUND


def test_of_a_committed_chunk_only_redis_is_there_for_the_others(shared: Engines) -> None:
    a, b = shared.open("a"), shared.open("b")
    a.commit_window(new_window("first", [*stored_in(BOTH, "x", 2), *stored_in(frozenset({TierName.DISK}), "y", 1)]))
    assert [row.tiers for row in a.chunks_of("first")] == [BOTH, BOTH, {TierName.DISK}]
    assert [row.tiers for row in b.chunks_of("first")] == [{TierName.REDIS}, {TierName.REDIS}, set()]


def test_placement_and_notes_are_each_engines_own(shared: Engines) -> None:
    a, b = shared.open("a"), shared.open("b")
    a.commit_window(new_window("first", stored_in(BOTH, "x", 1)))
    key = chain("x", 1)[0].key
    b.catch_up()
    b.place(TierName.DISK, [key], [])
    a.place(TierName.DISK, [], [key])
    a.note("cursor", "here")
    a.tag_window("first", ["t"], [], None, at(1))
    assert [row.tiers for row in b.chunks_of("first")] == [BOTH]
    assert [row.tiers for row in a.chunks_of("first")] == [{TierName.REDIS}]
    assert (a.noted("cursor"), b.noted("cursor")) == ("here", None)


def test_a_window_over_chunks_of_which_this_engine_knows_no_copy_arrives(shared: Engines) -> None:
    a, b = shared.open("a"), shared.open("b")
    a.commit_window(new_window("first", stored_in(BOTH, "x", 2)))
    b.catch_up()
    b.place(TierName.REDIS, [], [row.key for row in chain("x", 2)])
    a.commit_window(new_window("second", chain("x", 2), stored=[]))
    assert names(b) == {"first", "second"}
    assert [row.tiers for row in b.chunks_of("second")] == [frozenset(), frozenset()]
    # Its own freeze has to store them, and says so.
    missing = new_window("third", chain("x", 2), stored=[])
    assert code_of(lambda: b.commit_window(missing)) is Code.CHUNK_MISSING


def test_an_engine_is_told_what_others_deleted(shared: Engines) -> None:
    a, b = shared.open("a"), shared.open("b")
    a.commit_window(new_window("first", stored_in(BOTH, "x", 2)))
    b.catch_up()
    b.place(TierName.DISK, [chain("x", 1)[0].key], [])
    a.delete_window("first")
    assert shared.gone["b"] == []
    b.catch_up()
    (gone,) = shared.gone["b"]
    assert (gone.window, [row.tiers for row in gone.orphans]) == ("first", [BOTH, {TierName.REDIS}])
    assert shared.gone["a"] == []


def test_a_sweep_with_nothing_to_do_writes_nothing(shared: Engines) -> None:
    a = shared.open("a")
    before = a.sharing().applied
    assert a.sweep_unreferenced() == ()
    assert a.sharing().applied == before


def test_a_log_of_another_namespace_is_not_seen(tmp_path: Path, server: RedisServer) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with engines(tmp_path / "one", server.url) as one, engines(tmp_path / "two", server.url) as two:
        a, b = one.open("a"), two.open("a")
        a.commit_window(new_window("first", chain("x", 1)))
        assert names(b) == set()
        b.commit_window(new_window("first", chain("y", 2)))
        assert a.window("first").block_count == 1


def test_an_offline_client_reads_the_replica(shared: Engines) -> None:
    a, b = shared.open("a"), shared.open("b")
    committed = a.commit_window(new_window("first", stored_in(BOTH, "x", 1)))
    b.catch_up()
    with closing(SqliteCatalog.open_read_only(shared.path("b"))) as client:
        assert client.window("first") == committed


def test_catching_up_with_nothing_new_is_one_round_trip(shared: Engines, server: RedisServer) -> None:
    a = shared.open("a")
    a.commit_window(new_window("first", chain("x", 1)))
    with server.client() as client:
        before = int(client.info("stats")["total_commands_processed"])
        a.catch_up()
        assert int(client.info("stats")["total_commands_processed"]) - before == 2  # it and the INFO before it


def test_a_cluster_serves_like_one_server(tmp_path: Path) -> None:
    with redis_server(append_fsync="always", cluster=True) as server, engines(tmp_path, server.url) as shared:
        a, b = shared.open("a"), shared.open("b")
        a.commit_window(new_window("first", chain("x", 1)))
        a.clone_window("first", "second", None, None, at(1))
        a.compact()
        a.delete_window("first")
        b.catch_up()
        assert names(a) == names(b) == names(shared.open("c")) == {"second"}


def test_any_node_of_a_cluster_may_be_named(tmp_path: Path) -> None:
    """The one that the URL names has no slot, and tells where to go."""
    options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
    with (
        redis_server(append_fsync="always", cluster=True) as owner,
        redis_server(append_fsync="always", more=options) as other,
        engines(tmp_path, other.url) as shared,
    ):
        with other.client() as client:
            client.execute_command("CLUSTER MEET", "127.0.0.1", owner.port)
            deadline = time.monotonic() + 20
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok" and time.monotonic() < deadline:
                time.sleep(0.01)  # the nodes gossip; nothing tells when they agree
        a = shared.open("a")
        a.commit_window(new_window("first", chain("x", 1)))
        with owner.client() as client:
            assert client.xlen(shared.key("log")) == 2
        assert names(shared.open("b")) == {"first"}


def test_a_password_is_used_and_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server(append_fsync="always", password="p4ssw0rd") as server, engines(tmp_path, server.url) as shared:
        a = shared.open("a", BRISK)
        a.commit_window(new_window("first", chain("x", 1)))
        wrong = shared.open("b", BRISK, url=server.url.replace("p4ssw0rd", "wr0ng"))
        server.kill()
        for catalog in (a, wrong):
            with pytest.raises(CWMError) as refused:
                catalog.catch_up()
            shown = f"{refused.value} {refused.value.context} {catalog.state()} {caplog.text}"
            assert "p4ssw0rd" not in shown
            assert "wr0ng" not in shown


# --- what is not acknowledged yet ---


def test_a_record_that_its_writer_left_behind_is_made_durable_by_the_next(tmp_path: Path) -> None:
    """With `everysec` its writer died between append and sync: no read shows it, then another engine takes it over."""
    with redis_server(append_fsync="everysec") as server, engines(tmp_path, server.url) as shared:
        a, b = shared.open("a", replace(FollowLimits(), patience_s=3600)), shared.open("b", BRISK)
        left_behind(server, shared)
        assert names(a) == names(b) == set()
        assert a.sharing().behind == 1
        a.catch_up()
        assert names(a) == set()
        deadline = time.monotonic() + 10
        while names(b) != {"left"} and time.monotonic() < deadline:
            b.catch_up()
        assert names(b) == names(a) == {"left"}


def left_behind(server: RedisServer, shared: Engines) -> None:
    log = RedisLog(RedisLink(server.url), shared.namespace)
    view = log.look()
    assert view is not None
    assert log.append(view.head, record_after(view.head, Commit(new_window("left", chain("x", 1))), "dead"))
    log.close()


def test_a_redis_that_lost_its_last_second_is_behind_nobody(tmp_path: Path) -> None:
    """Power fails before an unacknowledged record is on Redis's disk: every engine goes on."""
    with redis_server(append_fsync="everysec") as server, engines(tmp_path, server.url) as shared:
        a, b = shared.open("a", BRISK), shared.open("b", BRISK)
        a.commit_window(new_window("kept", chain("k", 1)))
        b.catch_up()
        shutil.copytree(server.folder / "appendonlydir", tmp_path / "synced")
        left_behind(server, shared)
        assert names(a) == names(b) == {"kept"}
        server.kill()
        shutil.rmtree(server.folder / "appendonlydir")
        shutil.copytree(tmp_path / "synced", server.folder / "appendonlydir")
        server.start()
        a.catch_up()
        b.commit_window(new_window("next", chain("n", 1)))
        assert names(a) == names(b) == {"kept", "next"}


def test_an_acknowledged_write_waits_for_the_sync(tmp_path: Path) -> None:
    with redis_server(append_fsync="everysec") as server, engines(tmp_path, server.url) as shared:
        a = shared.open("a")
        with server.client() as client:
            client.config_set("appendfsync", "always")
            client.set("x", 1)  # all that was is synced
            client.config_set("appendfsync", "everysec")
        a.commit_window(new_window("first", chain("x", 1)))
        started = time.monotonic()
        a.commit_window(new_window("second", chain("y", 1)))
        assert time.monotonic() - started > 0.9  # a whole period of Redis's syncs
