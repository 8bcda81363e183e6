"""Checkpoints: engines join and catch up through them, deleted text is gone, no half one is ever taken."""

import os
import random
import time
import zlib
from contextlib import closing
from dataclasses import replace

import pytest

from cwm_connector.catalog.base import Binding
from cwm_connector.catalog.shared.catalog import RedisCatalog
from cwm_connector.catalog.shared.checkpoint import publish
from cwm_connector.catalog.shared.follow import FollowLimits
from cwm_connector.catalog.shared.log import RedisLog
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.redis import RedisLink
from tests.cwm_connector.catalog.engines import BRISK, Engines, shared_content
from tests.cwm_connector.catalog.samples import at, chain, names, new_window, token_ids
from tests.support.redis_server import RedisServer

BOTH = frozenset({TierName.DISK, TierName.REDIS})
SMALL_PARTS = FollowLimits(part_bytes=5000)
FLIPS = 400
SEED = 20261124


def fill(catalog: RedisCatalog, count: int, name: str = "w") -> None:
    for number in range(count):
        rows = [replace(row, tiers=BOTH) for row in chain(f"{name}{number}", 2)]
        catalog.commit_window(new_window(f"{name}{number}", rows, created_at=at(number)))


def parts(server: RedisServer, shared: Engines) -> dict[str, int]:
    """The keys of all parts with the seconds they have left; -1: for ever."""
    with server.client() as client:
        return {key.decode(): client.ttl(key) for key in client.keys(shared.key("part:*"))}


def logged(server: RedisServer, shared: Engines) -> int:
    with server.client() as client:
        return int(client.xlen(shared.key("log")))


def test_a_new_engine_joins_from_the_checkpoint_and_the_rest(shared: Engines, server: RedisServer) -> None:
    a = shared.open("a", SMALL_PARTS)
    fill(a, 5)
    a.bind(Binding("w1", "bob", b"1" * 32, at(9)))
    a.delete_window("w0")
    assert a.compact() > 0
    assert logged(server, shared) == 0
    assert len(parts(server, shared)) > 1
    assert set(parts(server, shared).values()) == {-1}
    a.tag_window("w2", ["later"], [], None, at(10))
    b = shared.open("b")
    assert shared_content(shared.path("a")) == shared_content(shared.path("b"))
    assert names(b) == {"w1", "w2", "w3", "w4"}
    assert b.window("w2").tags == ("later",)
    b.commit_window(new_window("back", chain("b", 1)))
    assert names(a) == names(b)


def test_an_engine_that_lags_behind_the_trimmed_log_catches_up(shared: Engines, server: RedisServer) -> None:
    a, b = shared.open("a", SMALL_PARTS), shared.open("b")
    a.note("cursor", "another's")
    a.note("quota", "another's")
    fill(a, 4)
    b.catch_up()
    b.note("cursor", "mine")
    for number in range(4):
        b.place(TierName.DISK, [chain(f"w{number}", 2)[0].key], [])
    a.delete_window("w0")
    a.delete_window("w1")
    a.commit_window(new_window("w1", chain("anew", 1), created_at=at(99)))
    a.compact()
    assert logged(server, shared) == 0
    # A read doesn't wait for a checkpoint; catching up does.
    assert "w0" in names(b)
    b.catch_up()
    assert names(b) == names(a)
    assert shared_content(shared.path("a")) == shared_content(shared.path("b"))
    # What is the engine's own stayed: its notes, and what it has on its disk.
    assert (b.noted("cursor"), b.noted("quota")) == ("mine", None)
    assert [row.tiers for row in b.chunks_of("w2")] == [BOTH, {TierName.REDIS}]
    assert [row.tiers for row in b.chunks_of("w1")] == [set()]
    # It is told what is gone, with the copies that it had: also of the name that was given anew.
    assert {gone.window for gone in shared.gone["b"]} == {"w0", "w1", None}
    (chunks,) = [gone.orphans for gone in shared.gone["b"] if gone.window is None]
    assert {row.key: row.tiers for row in chunks} == {
        row.key: BOTH if place == 0 else {TierName.REDIS}
        for number in (0, 1)
        for place, row in enumerate(chain(f"w{number}", 2))
    }
    b.close()
    SqliteCatalog.open(shared.path("b"), home_id="b").close()  # it is still this store's


def test_the_text_of_a_deleted_window_is_in_no_redis_value_after_compacting(
    shared: Engines, server: RedisServer
) -> None:
    a = shared.open("a")
    secret = os.urandom(4000)
    a.commit_window(replace(new_window("secret", chain("s", 1)), token_ids=secret))
    a.commit_window(new_window("other", chain("o", 1)))
    assert found(server, shared, secret[:64])
    a.delete_window("secret")
    a.compact()
    assert not found(server, shared, secret[:64])
    for path in shared.path("a").parent.iterdir():
        assert secret[:64] not in path.read_bytes(), path


def found(server: RedisServer, shared: Engines, text: bytes) -> bool:
    with server.client() as client:
        records = b"".join(fields[b"body"] for _, fields in client.xrange(shared.key("log")))
        images: dict[str, dict[int, bytes]] = {}
        for key in client.keys(shared.key("part:*")):
            name, number = key.decode().rsplit(":", 1)
            images.setdefault(name, {})[int(number)] = client.get(key)
        unpacked = [zlib.decompress(b"".join(image[n] for n in sorted(image))) for image in images.values()]
    return text in records or any(text in image for image in unpacked)


def test_a_long_log_is_compacted_by_itself(shared: Engines, server: RedisServer) -> None:
    a = shared.open("a", replace(FollowLimits(), log_records=10))
    fill(a, 25)
    deadline = time.monotonic() + 20
    while logged(server, shared) > 15 and time.monotonic() < deadline:
        a.tag_window("w0", ["again"], [], None, at(1))
    assert logged(server, shared) <= 15
    assert names(shared.open("b")) == names(a)


def test_a_replaced_checkpoint_expires_and_is_still_there_for_who_reads_it(
    shared: Engines, server: RedisServer
) -> None:
    a = shared.open("a", SMALL_PARTS)
    fill(a, 3)
    a.compact()
    first = set(parts(server, shared))
    fill(a, 3, "v")
    a.compact()
    left = parts(server, shared)
    assert first < set(left)
    assert {key: 0 < seconds <= 600 for key, seconds in left.items() if key in first} == dict.fromkeys(first, True)
    assert {seconds for key, seconds in left.items() if key not in first} == {-1}
    assert names(shared.open("b")) == names(a)


def test_a_checkpoint_that_was_cut_off_leaves_the_old_one_and_expires(shared: Engines, server: RedisServer) -> None:
    a = shared.open("a", SMALL_PARTS)
    fill(a, 3)
    a.compact()
    whole = set(parts(server, shared))
    fill(a, 3, "v")
    with closing(Cut(server, shared, after=2)) as log, pytest.raises(ConnectionAbortedError):
        publish(log, shared.path("a"), SMALL_PARTS.part_bytes)
    left = parts(server, shared)
    assert len(left) == len(whole) + 2
    assert all(0 < seconds <= 3600 for key, seconds in left.items() if key not in whole)
    assert {left[key] for key in whole} == {-1}
    assert logged(server, shared) == 3
    assert names(shared.open("b")) == names(a)
    assert [path.name for path in shared.path("a").parent.iterdir() if "outgoing" in path.name] == []


class Cut(RedisLog):
    """A log whose connection ends after some parts."""

    def __init__(self, server: RedisServer, shared: Engines, after: int) -> None:
        super().__init__(RedisLink(server.url), shared.namespace)
        self._left = after

    def put_part(self, name: str, number: int, part: bytes) -> None:
        if self._left == 0:
            raise ConnectionAbortedError
        self._left -= 1
        super().put_part(name, number, part)


def test_what_a_killed_engine_left_of_a_checkpoint_goes_at_its_next_start(shared: Engines) -> None:
    folder = shared.path("a").parent
    for name in ("outgoing", "incoming", "incoming-wal"):
        (folder / f"catalog.sqlite.{name}").write_bytes(b"somebody's text")
    shared.open("a").close()
    assert [path.name for path in folder.iterdir()] == ["catalog.sqlite"]


def test_a_checkpoint_with_a_missing_part_is_not_published(shared: Engines, server: RedisServer) -> None:
    a = shared.open("a", SMALL_PARTS)
    fill(a, 3)
    with closing(Forgetful(server, shared)) as log, pytest.raises(CWMError) as refused:
        publish(log, shared.path("a"), SMALL_PARTS.part_bytes)
    assert refused.value.code is Code.BUSY
    assert logged(server, shared) > 0
    assert names(shared.open("b")) == names(a)


class Forgetful(RedisLog):
    """A log in which one part has expired before the checkpoint is published."""

    def __init__(self, server: RedisServer, shared: Engines) -> None:
        super().__init__(RedisLink(server.url), shared.namespace)

    def publish(self, new, replaced) -> int | None:
        self._link.call("DEL", self._part(new.name, 1))
        return super().publish(new, replaced)


def test_two_engines_that_compact_at_once_leave_one_checkpoint(shared: Engines, server: RedisServer) -> None:
    a, b = shared.open("a", SMALL_PARTS), shared.open("b", SMALL_PARTS)
    fill(a, 3)
    b.catch_up()
    with closing(Slow(server, shared, b)) as log, pytest.raises(CWMError) as refused:
        publish(log, shared.path("a"), SMALL_PARTS.part_bytes)
    assert refused.value.code is Code.BUSY
    assert sum(seconds == -1 for seconds in parts(server, shared).values()) > 1
    assert names(shared.open("c")) == names(a)


class Slow(RedisLog):
    """A log on which another engine compacts just before this one publishes."""

    def __init__(self, server: RedisServer, shared: Engines, other: RedisCatalog) -> None:
        super().__init__(RedisLink(server.url), shared.namespace)
        self._other = other

    def publish(self, new, replaced) -> int | None:
        self._other.compact()
        return super().publish(new, replaced)


def test_every_flipped_bit_in_a_checkpoint_is_caught_and_never_loaded(shared: Engines, server: RedisServer) -> None:
    a, b = shared.open("a", SMALL_PARTS), shared.open("b", BRISK)
    b.commit_window(new_window("own", chain("own", 1)))
    fill(a, 3)
    a.compact()
    before = shared_content(shared.path("b"))
    choose = random.Random(SEED)
    facts = shared.key("facts")
    with server.client() as client:
        values = {key: client.get(key) for key in client.keys(shared.key("part:*"))}
        described = client.hget(facts, "checkpoint")
        for _ in range(FLIPS):
            key = choose.choice([*values, b""])
            if key:
                client.set(key, flipped(values[key], choose))
            else:
                client.hset(facts, "checkpoint", flipped(described, choose))
            with pytest.raises(CWMError) as caught:
                b.catch_up()
            assert caught.value.code is Code.CORRUPT
            if key:
                client.set(key, values[key])
            client.hset(facts, "checkpoint", described)
        for key in values:
            client.delete(key)
            with pytest.raises(CWMError) as caught:
                b.catch_up()
            assert caught.value.code is Code.CORRUPT
            client.set(key, values[key])
    assert shared_content(shared.path("b")) == before
    b.catch_up()
    assert names(b) == names(a)


def flipped(data: bytes, choose: random.Random) -> bytes:
    bit = choose.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_replica_of_another_history_publishes_nothing(shared: Engines, server: RedisServer) -> None:
    a = shared.open("a", BRISK)
    fill(a, 2)
    with server.client() as client:
        client.flushall()
    fill(shared.open("b"), 5)
    for call in (a.compact, lambda: publish(a._log, shared.path("a"))):
        with pytest.raises(CWMError) as refused:
            call()
        assert refused.value.code is Code.CORRUPT
    assert parts(server, shared) == {}


def test_a_reader_sees_the_old_or_the_new_while_a_checkpoint_is_loaded(shared: Engines) -> None:
    a, b = shared.open("a", SMALL_PARTS), shared.open("b")
    fill(a, 3)
    b.catch_up()
    fill(a, 3, "v")
    a.compact()
    with closing(SqliteCatalog.open_read_only(shared.path("b"))) as reader:
        assert names(reader) == {"w0", "w1", "w2"}
        b.catch_up()
        assert names(reader) == names(a)
        assert reader.token_ids_of("v1") == token_ids("v1", chain("v1", 2))
        reader.check_integrity()
