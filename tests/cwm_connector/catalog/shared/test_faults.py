"""Lost replies, requests that arrive late, damage in Redis: every answer is true, and nothing damaged is applied."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from cwm_connector.catalog.base import OutcomeUnknown
from cwm_connector.catalog.shared.catalog import RedisCatalog
from cwm_connector.catalog.shared.changes import Barrier, Position, Record, seal_of
from cwm_connector.catalog.shared.log import RedisLog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.redis import RedisLink
from tests.cwm_connector.catalog.engines import BRISK, Engines, engines, shared_content
from tests.cwm_connector.catalog.samples import at, chain, names, new_window
from tests.cwm_connector.catalog.shared.proxy import Proxy
from tests.support.redis_server import RedisServer, redis_server

FLIPS = 1600
SEED = 20261124
APPEND = b"XADD"
"""In the script that appends, and in no other request."""


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with closing(Proxy(server.port)) as opened:
        yield opened


def length(server: RedisServer, shared: Engines) -> int:
    with server.client() as client:
        return int(client.xlen(shared.key("log")))


# --- replies that are lost ---


def test_a_write_whose_reply_was_lost_is_acknowledged_once(shared: Engines, proxy: Proxy, server: RedisServer) -> None:
    a, b = shared.open("a", BRISK, url=proxy.url), shared.open("b")
    before = length(server, shared)
    proxy.lose = APPEND
    committed = a.commit_window(new_window("first", chain("x", 1)))
    assert proxy.lose is None
    assert length(server, shared) == before + 1
    assert a.window("first") == b.window("first") == committed


def test_a_request_that_comes_late_is_ruled_out_before_it_is_repeated(
    shared: Engines, proxy: Proxy, server: RedisServer
) -> None:
    a, b = shared.open("a", BRISK, url=proxy.url), shared.open("b")
    before = length(server, shared)
    proxy.hold = APPEND
    committed = a.commit_window(new_window("first", chain("x", 1)))
    # A barrier took the place that was meant for it, and the window came behind.
    assert length(server, shared) == before + 2
    assert proxy.release() == b":0\r\n"
    assert length(server, shared) == before + 2
    assert a.window("first") == b.window("first") == committed


def test_a_lost_request_that_another_engine_overtook_is_tried_again(shared: Engines, proxy: Proxy) -> None:
    a = shared.open("a", BRISK, url=proxy.url)

    def overtake() -> None:
        with closing(RedisCatalog.open(shared.url, shared.namespace, shared.path("b"))) as b:
            b.commit_window(new_window("other", chain("y", 1)))

    proxy.hold, proxy.on_hold = APPEND, overtake
    a.commit_window(new_window("first", chain("x", 1)))
    assert proxy.release() == b":0\r\n"
    assert names(a) == {"other", "first"}


def test_where_redis_stays_away_the_outcome_is_called_unknown_and_told_later(shared: Engines, proxy: Proxy) -> None:
    """It did arrive: the next contact shows the window, with this engine's own disk; repeating it is refused."""
    a, b = shared.open("a", BRISK, url=proxy.url), shared.open("b")
    proxy.lose, proxy.then_down = APPEND, True
    with pytest.raises(OutcomeUnknown) as unknown:
        a.commit_window(new_window("first", chain("x", 1)))
    assert (unknown.value.code, unknown.value.retryable) == (Code.BACKEND, True)
    assert names(a) == set()
    assert not a.sharing().durable
    proxy.down = False
    with pytest.raises(CWMError) as refused:
        a.commit_window(new_window("first", chain("x", 1)))
    assert refused.value.code is Code.WINDOW_EXISTS
    a.catch_up()
    assert a.sharing().durable
    assert a.window("first") == b.window("first")
    assert [row.tiers for row in a.chunks_of("first")] == [{TierName.DISK}]
    assert [row.tiers for row in b.chunks_of("first")] == [set()]


def test_after_an_unknown_outcome_a_late_request_is_ruled_out_by_catching_up(
    shared: Engines, proxy: Proxy, server: RedisServer
) -> None:
    a, b = shared.open("a", BRISK, url=proxy.url), shared.open("b")
    proxy.hold, proxy.then_down = APPEND, True
    with pytest.raises(OutcomeUnknown):
        a.commit_window(new_window("first", chain("x", 1)))
    proxy.down = False
    a.catch_up()
    assert a.sharing().durable
    assert proxy.release() == b":0\r\n"
    assert names(a) == names(b) == set()


def test_what_an_earlier_process_sent_cannot_arrive_after_a_start(shared: Engines, proxy: Proxy) -> None:
    a = shared.open("a", BRISK, url=proxy.url)
    proxy.hold, proxy.then_down = APPEND, True
    with pytest.raises(OutcomeUnknown):
        a.commit_window(new_window("first", chain("x", 1)))
    a.close()
    again = shared.open("a")
    assert again.sharing().durable
    assert proxy.release() == b":0\r\n"
    assert names(again) == set()


def test_a_redis_stopped_during_an_append_executes_it_at_most_once(tmp_path: Path) -> None:
    with (
        redis_server(append_fsync="always") as server,
        engines(tmp_path, server.url) as shared,
        closing(Proxy(server.port)) as proxy,
    ):
        a = shared.open("a", BRISK, url=proxy.url)
        for step in range(4):
            # The request waits in the stopped server's socket, and is executed once it goes on.
            server.pause()
            with pytest.raises(CWMError) as failed:
                a.commit_window(new_window(f"w{step}", chain("x", 1)))
            assert failed.value.code is Code.BACKEND
            server.resume()
            a.catch_up()
            found = f"w{step}" in names(a)
            assert ({f"w{step}"} <= names(shared.open(f"b{step}"))) == found
            if not found:
                a.commit_window(new_window(f"w{step}", chain("x", 1)))
        assert names(a) == {f"w{step}" for step in range(4)}


# --- damage in Redis ---


def test_every_flipped_bit_in_a_record_is_caught_and_never_applied(shared: Engines, server: RedisServer) -> None:
    a, b = shared.open("a"), shared.open("b", BRISK)
    base = b.sharing().applied
    a.commit_window(new_window("first", chain("x", 2), tags=["t"], description="words"))
    untouched = shared_content(shared.path("b"))
    choose = random.Random(SEED)
    log = shared.key("log")
    with server.client() as client:
        ((_, fields),) = client.xrange(log, f"{base + 1}-0")
        for _ in range(FLIPS):
            name = choose.choice([b"seal", b"body", b"body", b"body"])
            damaged = flipped(fields[name], choose)
            put(client, log, base + 1, {**fields, name: damaged})
            with pytest.raises(CWMError) as caught:
                b.catch_up()
            assert caught.value.code is Code.CORRUPT
        assert shared_content(shared.path("b")) == untouched
        assert b.sharing().applied == base
        put(client, log, base + 1, fields)
    b.catch_up()
    assert names(b) == {"first"}


def flipped(data: bytes, choose: random.Random) -> bytes:
    bit = choose.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def put(client, log: str, number: int, fields) -> None:
    pipeline = client.pipeline(transaction=True)
    pipeline.delete(log).xadd(log, fields, id=f"{number}-0")
    pipeline.execute()


def test_a_record_in_another_ones_place_is_not_applied(shared: Engines, server: RedisServer) -> None:
    a, b = shared.open("a"), shared.open("b", BRISK)
    base = b.sharing().applied
    for name in ("first", "second", "third"):
        a.commit_window(new_window(name, chain(name, 1)))
    log = shared.key("log")
    with server.client() as client:
        entries = [fields for _, fields in client.xrange(log, f"{base + 1}-0")]
        for order in ([1, 0, 2], [0, 2, 1], [0, 0, 1], [2, 1, 0]):
            client.delete(log)
            for place, which in enumerate(order):
                client.xadd(log, entries[which], id=f"{base + 1 + place}-0")
            with pytest.raises(CWMError) as caught:
                b.catch_up()
            assert caught.value.code is Code.CORRUPT
        client.delete(log)
        for place, entry in enumerate(entries[:2]):
            client.xadd(log, entry, id=f"{base + 1 + place}-0")
        with pytest.raises(CWMError, match="missing"):
            b.catch_up()


def test_damaged_facts_are_caught(shared: Engines, server: RedisServer) -> None:
    a = shared.open("a", BRISK)
    a.commit_window(new_window("first", chain("x", 1)))
    facts = shared.key("facts")
    choose = random.Random(SEED)
    with server.client() as client:
        whole = client.hgetall(facts)
        for _ in range(200):
            name = choose.choice([b"log", b"head"])
            client.hset(facts, name, flipped(whole[name], choose))
            with pytest.raises(CWMError) as caught:
                a.catch_up()
            assert caught.value.code is Code.CORRUPT
            client.hset(facts, mapping=whole)
        client.delete(facts)
        with pytest.raises(CWMError) as caught:
            shared.open("b")
        assert caught.value.code is Code.CORRUPT
        client.hset(facts, mapping=whole)
    a.catch_up()
    assert names(a) == {"first"}


def test_a_record_of_a_newer_version_asks_for_the_update(shared: Engines, server: RedisServer) -> None:
    a = shared.open("a", BRISK)
    log = RedisLog(RedisLink(server.url), shared.namespace)
    view = log.look()
    assert view is not None
    body = msgspec.msgpack.encode([view.head.number + 1, b"token", "later", ["rename", "first", "second"]])
    place = Position(view.head.log, view.head.number + 1, seal_of(view.head.seal, body))
    assert log.append(view.head, Record(place, body, Barrier(), "later"))
    log.close()
    with pytest.raises(CWMError, match="newer version") as caught:
        a.catch_up()
    assert caught.value.code is Code.CORRUPT


# --- a replica that can't follow ---


def test_a_write_that_the_replica_could_not_take_has_happened_all_the_same(shared: Engines) -> None:
    """The shared log has it: it is acknowledged, and the replica takes it once its disk lets it."""
    a, b = shared.open("a", BRISK), shared.open("b")
    a.commit_window(new_window("first", chain("x", 1)))
    disk = a._replica.file._connection
    disk.execute("PRAGMA wal_autocheckpoint = 0")
    commit_fails = FailingCommit(disk)
    a._replica.file._connection = commit_fails  # type: ignore[assignment]
    row = a.commit_window(new_window("second", chain("y", 1)))
    assert row.name == "second"
    assert b.window("second") == row
    a._replica.file._connection = disk
    assert a.sharing().fault is not None
    a.catch_up()
    assert a.window("second") == row
    assert [chunk.tiers for chunk in a.chunks_of("second")] == [{TierName.DISK}]
    a.tag_window("second", ["t"], [], None, at(1))


class FailingCommit:
    """A connection whose COMMIT fails once as on a full disk."""

    def __init__(self, connection) -> None:
        self._connection = connection
        self._failed = False

    def __getattr__(self, name: str):
        return getattr(self._connection, name)

    def execute(self, sql: str, *values):
        if sql == "COMMIT" and not self._failed:
            self._failed = True
            problem = sqlite3.OperationalError("database or disk is full")
            problem.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise problem
        return self._connection.execute(sql, *values)
