"""Several engines, one catalog: reads continue without Redis, and a Redis with other data is refused."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from tests.cwm_connector.catalog.engines import BRISK, Engines, code_of, engines, shared_content
from tests.cwm_connector.catalog.samples import chain, names, new_window
from tests.support.redis_server import redis_server

# --- Redis away ---


def test_with_redis_away_reads_go_on_and_writes_fail(tmp_path: Path) -> None:
    with redis_server(append_fsync="always") as server, engines(tmp_path, server.url) as shared:
        a = shared.open("a", BRISK)
        a.commit_window(new_window("first", chain("x", 1)))
        server.kill()
        assert names(a) == {"first"}
        assert a.token_ids_of("first")
        assert code_of(lambda: a.commit_window(new_window("second", chain("y", 1)))) is Code.BACKEND
        assert code_of(a.catch_up) is Code.BACKEND
        state = a.sharing()
        assert (state.connected, state.behind) == (False, None)
        assert a.state() is not None
        server.start()
        a.commit_window(new_window("second", chain("y", 1)))
        assert a.state() is None
        assert a.sharing().connected
        assert names(a) == {"first", "second"}


def test_a_stopped_redis_holds_no_read_up(tmp_path: Path) -> None:
    limits = replace(BRISK, pause_s=60)
    with redis_server(append_fsync="always") as server, engines(tmp_path, server.url) as shared:
        a = shared.open("a", limits)
        a.commit_window(new_window("first", chain("x", 1)))
        server.pause()
        started = time.monotonic()
        for _ in range(100):
            assert names(a) == {"first"}
        assert time.monotonic() - started < 2 * (limits.connect_s + limits.read_s)
        started = time.monotonic()
        assert code_of(lambda: a.commit_window(new_window("second", chain("y", 1)))) is Code.BACKEND
        assert time.monotonic() - started < limits.connect_s + 2 * limits.call_s + limits.write_s
        server.resume()
        a.catch_up()
        assert names(a) == {"first"}


def test_an_engine_starts_from_its_replica_without_redis(tmp_path: Path) -> None:
    with redis_server(append_fsync="always") as server, engines(tmp_path, server.url) as shared:
        a = shared.open("a")
        a.commit_window(new_window("first", chain("x", 1)))
        a.close()
        server.kill()
        again = shared.open("a", BRISK)
        assert names(again) == {"first"}
        assert not again.sharing().durable
        assert code_of(lambda: again.delete_window("first")) is Code.BACKEND
        server.start()
        again.catch_up()
        assert again.sharing().durable
        again.delete_window("first")


def test_an_engine_without_redis_and_replica_starts_empty(tmp_path: Path) -> None:
    with engines(tmp_path, "redis://127.0.0.1:1/0") as shared:
        a = shared.open("a", BRISK)
        assert names(a) == set()
        assert code_of(lambda: a.commit_window(new_window("first", chain("x", 1)))) is Code.BACKEND


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({}, "appendonly yes"),
        ({"append_fsync": "no"}, "appendfsync everysec"),
        ({"append_fsync": "always", "policy": "allkeys-lru"}, "noeviction"),
        ({"append_fsync": "everysec", "more": ("--no-appendfsync-on-rewrite", "yes")}, "no-appendfsync-on-rewrite no"),
    ],
)
def test_a_redis_that_could_lose_windows_is_refused_at_the_start(tmp_path: Path, options: dict, hint: str) -> None:
    with redis_server(**options) as server, engines(tmp_path, server.url) as shared:
        with pytest.raises(CWMError, match=hint) as refused:
            shared.open("a")
        assert refused.value.code is Code.ARGUMENT


def test_a_full_redis_refuses_a_freeze_and_serves_on(tmp_path: Path) -> None:
    with redis_server(append_fsync="always") as server, engines(tmp_path, server.url) as shared:
        a, b = shared.open("a"), shared.open("b")
        a.commit_window(new_window("first", chain("x", 1)))
        with server.client() as client:
            client.config_set("maxmemory", 1)
            assert code_of(lambda: a.commit_window(new_window("second", chain("y", 1)))) is Code.QUOTA
            assert names(a) == names(b) == {"first"}
            client.config_set("maxmemory", 0)
        a.commit_window(new_window("second", chain("y", 1)))
        assert names(b) == {"first", "second"}


def test_a_catalog_with_windows_of_its_own_is_not_mixed_in(shared: Engines) -> None:
    own = SqliteCatalog.open(shared.path("a"))
    own.commit_window(new_window("mine", chain("x", 1)))
    own.close()
    with pytest.raises(CWMError, match="not shared") as refused:
        shared.open("a")
    assert refused.value.code is Code.ARGUMENT


# --- another history ---


def test_a_redis_from_an_older_copy_is_not_mixed_in(tmp_path: Path) -> None:
    with redis_server(append_fsync="always") as server, engines(tmp_path, server.url) as shared:
        a, b = shared.open("a", BRISK), shared.open("b", BRISK)
        a.commit_window(new_window("first", chain("x", 1)))
        b.catch_up()
        b.close()
        server.kill()
        shutil.copytree(server.folder / "appendonlydir", tmp_path / "older")
        server.start()
        a.commit_window(new_window("second", chain("y", 1)))
        server.kill()
        shutil.rmtree(server.folder / "appendonlydir")
        shutil.copytree(tmp_path / "older", server.folder / "appendonlydir")
        server.start()
        before = shared_content(shared.path("a"))
        with pytest.raises(CWMError, match="another history") as refused:
            a.catch_up()
        assert refused.value.code is Code.CORRUPT
        # Even once the older one has as many records: they are others.
        again = shared.open("b", BRISK)
        for name in ("third", "fourth", "fifth"):
            again.commit_window(new_window(name, chain(name, 1)))
        assert code_of(a.catch_up) is Code.CORRUPT
        assert code_of(lambda: a.delete_window("first")) is Code.CORRUPT
        assert names(a) == {"first", "second"}
        assert shared_content(shared.path("a")) == before
        assert code_of(lambda: shared.open("a")) is Code.CORRUPT


def test_a_flushed_redis_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    with redis_server(append_fsync="always") as server, engines(tmp_path, server.url) as shared:
        a = shared.open("a", BRISK)
        a.commit_window(new_window("first", chain("x", 1)))
        with server.client() as client:
            client.flushall()
        assert code_of(a.catch_up) is Code.CORRUPT
        b = shared.open("b")
        b.commit_window(new_window("other", chain("y", 1)))
        assert code_of(a.catch_up) is Code.CORRUPT
        assert names(a) == {"first"}
        # As the message says: without its replica the engine goes on with what Redis has.
        a.close()
        shutil.rmtree(shared.path("a").parent)
        assert names(shared.open("a")) == {"other"}
