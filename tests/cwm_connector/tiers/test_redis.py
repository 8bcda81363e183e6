"""The Redis tier on a real server: bytes come back bit for bit, or a code says why not, in time."""

import logging
import mmap
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from cwm_connector.protocol import Code, CWMError
from cwm_connector.terms import ChunkKey, Claim
from cwm_connector.tiers.base import ChunkId, ChunkStore
from cwm_connector.tiers.chunk import check
from cwm_connector.tiers.redis import MAX_VALUE_BYTES, REST_S, RedisTier
from tests.cwm_connector.tiers.chunks import SealedChunk, aligned_buffer, sealed_chunk
from tests.support.redis_server import RedisServer, redis_server
from tests.support.relay import relay

MIB = 1 << 20
NAMESPACE = "cwm:store-1"
UNKNOWN = ChunkId(ChunkKey(bytes(32)), 0)
SECRET = "pässw@rd:/#?"
MINE, THEIRS = Claim("engine-a:1"), Claim("engine-b:2")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    with redis_server(append_fsync="always") as server:
        yield server


@pytest.fixture
def tier(server: RedisServer) -> Iterator[RedisTier]:
    with opened(server.url) as tier:
        yield tier


@contextmanager
def opened(url: str, namespace: str = NAMESPACE, **options: Any) -> Iterator[RedisTier]:
    tier = RedisTier(url, namespace, **options)
    try:
        yield tier
    finally:
        tier.close()


def failure(future: "Future[None]") -> CWMError:
    with pytest.raises(CWMError) as raised:
        future.result(timeout=30)
    return raised.value


def put(tier: ChunkStore, *chunks: SealedChunk) -> None:
    for future in [tier.write(chunk.id, chunk.buffer) for chunk in chunks]:
        future.result(timeout=30)


def assert_reads_back(tier: ChunkStore, *chunks: SealedChunk) -> None:
    targets = [aligned_buffer(chunk.buffer.nbytes) for chunk in chunks]
    reads = [tier.read(chunk.id, target) for chunk, target in zip(chunks, targets, strict=True)]
    for chunk, target, read in zip(chunks, targets, reads, strict=True):
        read.result(timeout=30)
        check(target, chunk.header)
        assert target == chunk.buffer


def value_key(chunk: SealedChunk, namespace: str = NAMESPACE) -> str:
    return f"{namespace}:{{{chunk.id.key.hex()}.{chunk.id.kv_rank}}}:chunk"


# --- round trips ------------------------------------------------------------------------------------------------------


def test_chunks_of_all_sizes_come_back_bit_for_bit_also_later(tier: RedisTier, server: RedisServer) -> None:
    sizes = [(1, 0), (MIB, 1), (3 * MIB // 2, 2**32 - 1), (6 * MIB, 0), (32 * MIB, 7)]
    chunks = [sealed_chunk(seed, size, rank) for seed, (size, rank) in enumerate(sizes)]
    put(tier, *chunks)
    assert_reads_back(tier, *chunks)
    with opened(server.url) as later:
        assert_reads_back(later, *chunks)
        assert dict(later.inventory()) == {chunk.id: chunk.buffer.nbytes for chunk in chunks}
        assert [later.size_of(chunk.id) for chunk in chunks] == [chunk.buffer.nbytes for chunk in chunks]
        assert later.sweep_leftovers() == 0


def test_many_chunks_at_once_each_get_their_own_bytes(tier: RedisTier) -> None:
    chunks = [sealed_chunk(seed, 100_000 + seed) for seed in range(64)]
    put(tier, *chunks)
    assert_reads_back(tier, *chunks)


def test_writing_again_replaces_the_bytes(tier: RedisTier, server: RedisServer) -> None:
    chunk = sealed_chunk(1, 5000)
    with server.client() as client:
        client.set(value_key(chunk), b"what stood there before")
    put(tier, chunk)
    assert_reads_back(tier, chunk)


def test_an_inventory_of_thousands_is_complete_and_counts_each_once(tier: RedisTier, server: RedisServer) -> None:
    chunk = sealed_chunk(1, 1)
    with server.client() as client:
        client.mset({f"somebody:{number}": b"else's" for number in range(3000)})
        client.mset(
            {f"{NAMESPACE}:{{{number.to_bytes(32).hex()}.{number % 3}}}:chunk": b"x" * 10 for number in range(3000)}
        )
    put(tier, chunk)
    found = list(tier.inventory())
    expected = {ChunkId(ChunkKey(number.to_bytes(32)), number % 3): 10 for number in range(3000)}
    assert len(found) == 3001
    assert dict(found) == {**expected, chunk.id: chunk.buffer.nbytes}


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"password": SECRET}, "url"),
        ({"tls": True, "password": SECRET}, "url"),
        ({"password": SECRET}, "unix_url"),
        ({"cluster": True, "append_fsync": "always"}, "url"),
    ],
    ids=["password", "tls", "unix", "cluster"],
)
def test_every_kind_of_server_serves_everything(options: dict[str, Any], way: str) -> None:
    chunks = [sealed_chunk(seed, 100_000) for seed in range(20)]
    with redis_server(**options) as server, opened(getattr(server, way), shared=True) as tier:
        put(tier, *chunks)
        assert_reads_back(tier, *chunks)
        assert {chunk for chunk, _ in tier.inventory()} == {chunk.id for chunk in chunks}
        assert tier.check_server().durable is ("append_fsync" in options)
        tier.write(chunks[0].id, chunks[0].buffer, MINE).result(timeout=30)
        assert tier.claims_of(chunks[0].id) == {MINE, ""}
        assert (tier.delete(chunks[0].id), tier.delete(chunks[0].id, MINE)) == (False, True)
        assert tier.size_of(chunks[0].id) is None
        if "append_fsync" in options:
            tier.sync()


def test_a_users_name_and_a_database_come_from_the_url(server: RedisServer) -> None:
    chunk = sealed_chunk(1, 1000)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "cwm", "on", f">{SECRET}", "~cwm:*", "+@all")
    url = server.url.replace("redis://", "redis://cwm:p%C3%A4ssw%40rd%3A%2F%23%3F@").replace("/0", "/3")
    with opened(url) as tier, server.client() as first, server.client(db=3) as fourth:
        put(tier, chunk)
        assert_reads_back(tier, chunk)
        assert (first.strlen(value_key(chunk)), fourth.strlen(value_key(chunk))) == (0, chunk.buffer.nbytes)


# --- what was stored is not what is there -----------------------------------------------------------------------------


def test_a_missing_chunk_is_missing_and_the_connection_goes_on(tier: RedisTier) -> None:
    chunk = sealed_chunk(1, 1000)
    put(tier, chunk)
    for _ in range(4):
        assert failure(tier.read(UNKNOWN, aligned_buffer(4096))).code is Code.CHUNK_MISSING
        assert_reads_back(tier, chunk)
    assert tier.size_of(UNKNOWN) is None
    assert tier.claims_of(UNKNOWN) == frozenset()
    assert not tier.delete(UNKNOWN)


@pytest.mark.parametrize("change", [-4096, -1, 1, 4096, MIB])
def test_another_length_is_corrupt_and_leaves_the_buffer_alone(
    tier: RedisTier, server: RedisServer, change: int
) -> None:
    damaged, whole = sealed_chunk(1, 20_000), sealed_chunk(2, 20_000)
    put(tier, damaged, whole)
    with server.client() as client:
        content = bytes(damaged.buffer) + bytes(MIB)
        client.set(value_key(damaged), content[: damaged.buffer.nbytes + change])
    target = aligned_buffer(damaged.buffer.nbytes)
    target[:] = b"\xa5" * target.nbytes
    problem = failure(tier.read(damaged.id, target))
    assert (problem.code, problem.context) == (Code.CORRUPT, {"fault": "length"})
    assert target == b"\xa5" * target.nbytes
    assert_reads_back(tier, whole, whole, whole)  # no connection is out of step


def test_swapped_values_are_caught(tier: RedisTier, server: RedisServer) -> None:
    one, other = sealed_chunk(1, 20_000), sealed_chunk(2, 20_000)
    put(tier, one, other)
    with server.client() as client:
        client.copy(value_key(one), value_key(other), replace=True)
    target = aligned_buffer(other.buffer.nbytes)
    tier.read(other.id, target).result(timeout=30)
    with pytest.raises(CWMError) as raised:
        check(target, other.header)
    assert raised.value.context == {"fault": "key"}


def test_every_single_flipped_bit_in_redis_is_caught(tier: RedisTier, server: RedisServer) -> None:
    chunk = sealed_chunk(1, 1000)
    put(tier, chunk)
    bits = random.Random(20261124).sample(range(chunk.buffer.nbytes * 8), 1800)
    target = aligned_buffer(chunk.buffer.nbytes)
    caught = 0
    with server.client() as client:
        for bit in bits:
            before = client.getbit(value_key(chunk), bit)
            client.setbit(value_key(chunk), bit, 1 - before)
            tier.read(chunk.id, target).result(timeout=30)
            with pytest.raises(CWMError) as raised:
                check(target, chunk.header)
            caught += raised.value.code is Code.CORRUPT
            client.setbit(value_key(chunk), bit, before)
    assert caught == len(bits)
    assert_reads_back(tier, chunk)


# --- claims and namespaces --------------------------------------------------------------------------------------------


def test_bytes_stay_as_long_as_another_store_claims_them(server: RedisServer) -> None:
    chunk = sealed_chunk(1, 5000)
    with opened(server.url, shared=True) as mine, opened(server.url, shared=True) as theirs:
        mine.write(chunk.id, chunk.buffer, MINE).result(timeout=30)
        theirs.write(chunk.id, chunk.buffer, THEIRS).result(timeout=30)
        assert mine.claims_of(chunk.id) == {MINE, THEIRS}
        assert not mine.delete(chunk.id, MINE)
        assert not mine.delete(chunk.id, MINE)
        assert not mine.delete(chunk.id)
        assert_reads_back(theirs, chunk)
        assert theirs.delete(chunk.id, THEIRS)
        assert failure(mine.read(chunk.id, aligned_buffer(chunk.buffer.nbytes))).code is Code.CHUNK_MISSING
        assert mine.claims_of(chunk.id) == frozenset()
        assert not theirs.delete(chunk.id, THEIRS)
    with server.client() as client:
        assert client.dbsize() == 0


def test_namespaces_do_not_see_each_other(server: RedisServer) -> None:
    chunk, inner = sealed_chunk(1, 1000), sealed_chunk(2, 1000)
    names = ["cwm:a", "cwm:a:b", "cwm", "cwm:A"]
    for number, name in enumerate(names):
        with opened(server.url, name) as tier:
            tier.write(chunk.id if number % 2 else inner.id, (chunk if number % 2 else inner).buffer).result(timeout=30)
    for number, name in enumerate(names):
        with opened(server.url, name) as tier:
            assert [found for found, _ in tier.inventory()] == [chunk.id if number % 2 else inner.id]
            assert tier.size_of(inner.id if number % 2 else chunk.id) is None
    with opened(server.url, names[0]) as tier:
        assert tier.delete(inner.id)
    with opened(server.url, names[2]) as tier:
        assert_reads_back(tier, inner)


@pytest.mark.parametrize("namespace", ["", "cwm*", "cwm{1}", "cwm?", "cwm[a]", "a b", "cwm\n"])
def test_a_namespace_that_would_match_others_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        RedisTier("redis://127.0.0.1:1", namespace)


# --- a server that goes away and comes back ---------------------------------------------------------------------------


def test_a_server_that_is_down_fails_at_once_and_is_found_when_it_is_there(server: RedisServer) -> None:
    chunk = sealed_chunk(1, 1000)
    server.stop()
    with opened(server.url) as tier:
        begun = time.monotonic()
        for _ in range(50):
            assert failure(tier.write(chunk.id, chunk.buffer)).code is Code.BACKEND
        for call in (tier.sync, tier.check_server, tier.require_lasting, tier.condition, tier.inventory):
            with pytest.raises(CWMError, match=r"CWM-5002.*Connection refused.*CWM_REDIS_URL"):
                call()
        assert tier.limit_bytes() is None
        assert time.monotonic() - begun < 2
        server.start()
        put(tier, chunk)
        assert_reads_back(tier, chunk)


def test_after_a_failed_connect_nobody_tries_for_a_moment() -> None:
    """Each would wait for its time-out in turn: the address answers nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with opened(url, connect_timeout_s=0.4, timeout_s=30) as tier:
            begun = time.monotonic()
            reads = [tier.read(UNKNOWN, aligned_buffer(4096)) for _ in range(40)]
            assert {failure(read).code for read in reads} == {Code.BACKEND}
            assert time.monotonic() - begun < 0.4 + REST_S


def test_a_restart_between_two_calls_is_not_noticed(durable: RedisServer) -> None:
    chunks = [sealed_chunk(seed, 100_000) for seed in range(4)]
    with opened(durable.url) as tier:
        put(tier, *chunks)
        assert_reads_back(tier, *chunks)
        tier.sync()
        for end in (durable.stop, durable.kill, durable.stop):
            end()
            durable.start()
            assert_reads_back(tier, *chunks)
            put(tier, *chunks)
            tier.sync()
            assert len(list(tier.inventory())) == 4


def test_a_kill_in_the_middle_of_writes_fails_honestly_and_the_next_ones_work(durable: RedisServer) -> None:
    acknowledged, broken = sealed_chunk(1, 100_000), [sealed_chunk(seed, 32 * MIB) for seed in (2, 3)]
    with opened(durable.url) as tier:
        put(tier, acknowledged)
        tier.sync()
        durable.pause()  # the sockets' buffers fill up in the middle of a value
        writes = [tier.write(chunk.id, chunk.buffer) for chunk in broken]
        assert not any(write.done() for write in writes)
        durable.kill()
        for write in writes:
            problem = failure(write)
            assert problem.code is Code.BACKEND
            assert "buffer_in_use" not in problem.context
        durable.start()
        assert_reads_back(tier, acknowledged)
        assert dict(tier.inventory()) == {acknowledged.id: acknowledged.buffer.nbytes}
        put(tier, *broken)
        assert_reads_back(tier, *broken)


def test_random_kills_never_lose_what_was_synced_nor_bring_wrong_bytes(durable: RedisServer) -> None:
    chunks = {seed: sealed_chunk(seed, 400_000) for seed in range(60)}
    luck = random.Random(7)
    synced: set[int] = set()
    with opened(durable.url) as tier:
        for turn in range(6):
            batch = [chunks[turn * 10 + n] for n in range(10)]
            writes = [tier.write(chunk.id, chunk.buffer) for chunk in batch]
            reads = [tier.read(chunks[seed].id, aligned_buffer(chunks[seed].buffer.nbytes)) for seed in synced]
            for write in writes[: luck.randrange(10)]:
                write.exception(timeout=30)
            durable.kill()
            outcomes = [write.exception(timeout=30) for write in [*writes, *reads]]
            assert all(problem is None or getattr(problem, "code", 0) is Code.BACKEND for problem in outcomes)
            durable.start()
            _wait_until_it_answers(tier)
            put(tier, *batch[:5])
            with pytest.raises(CWMError) if any(p is None for p in outcomes[:10]) else _nothing():
                tier.sync()
            tier.sync()
            synced |= {turn * 10 + n for n in range(5)}
            assert_reads_back(tier, *(chunks[seed] for seed in synced))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _wait_until_it_answers(tier: RedisTier) -> None:
    until = time.monotonic() + REST_S + 5
    while True:
        try:
            tier.size_of(UNKNOWN)
            return
        except CWMError:
            assert time.monotonic() < until


def test_a_connection_that_breaks_within_a_value_is_no_good_value(server: RedisServer) -> None:
    chunk = sealed_chunk(1, 4 * MIB)
    with relay(server.port) as way, opened(way.url, workers=1) as tier:
        put(tier, chunk)
        assert_reads_back(tier, chunk)
        for part in (0, 1, 5, 4096, 3 * MIB, chunk.buffer.nbytes + 10):
            way.cut_after(part)
            problem = failure(tier.read(chunk.id, aligned_buffer(chunk.buffer.nbytes)))
            assert problem.code is Code.BACKEND, part
            assert_reads_back(tier, chunk)


# --- a server that answers slowly -------------------------------------------------------------------------------------


def test_time_outs_hold_while_the_server_hangs_and_it_recovers(server: RedisServer) -> None:
    chunk = sealed_chunk(1, 8 * MIB)
    with opened(server.url, connect_timeout_s=0.3, timeout_s=0.7) as tier:
        put(tier, chunk)
        assert_reads_back(tier, chunk)
        tier.size_of(chunk.id)
        server.pause()
        begun = time.monotonic()
        calls = [tier.read(chunk.id, aligned_buffer(chunk.buffer.nbytes)), tier.write(chunk.id, chunk.buffer)]
        for call in calls:
            problem = failure(call)
            assert problem.code is Code.BACKEND
            assert "buffer_in_use" not in problem.context  # the socket's own time-out came first
        for ask in (tier.sync, lambda: tier.delete(chunk.id), tier.inventory):
            with pytest.raises(CWMError, match=r"CWM-5002"):
                ask()
        assert 0.6 < time.monotonic() - begun < 4
        server.resume()
        _wait_until_it_answers(tier)
        assert_reads_back(tier, chunk)


def test_a_late_reply_is_never_taken_for_the_next_ones(server: RedisServer) -> None:
    one, other = sealed_chunk(1, MIB), sealed_chunk(2, MIB)
    with opened(server.url, workers=1, connect_timeout_s=5, timeout_s=0.3) as tier:
        put(tier, one, other)
        assert_reads_back(tier, one)
        for _ in range(5):
            server.pause()
            assert failure(tier.read(one.id, aligned_buffer(one.buffer.nbytes))).code is Code.BACKEND
            server.resume()
            assert_reads_back(tier, other)


def test_a_value_that_stops_in_the_middle_is_given_up_in_time(server: RedisServer) -> None:
    chunk, other = sealed_chunk(1, 4 * MIB), sealed_chunk(2, MIB)
    with relay(server.port) as way, opened(way.url, workers=1, timeout_s=0.5) as tier:
        put(tier, chunk, other)
        assert_reads_back(tier, chunk)
        way.hold_after(MIB)
        begun = time.monotonic()
        problem = failure(tier.read(chunk.id, aligned_buffer(chunk.buffer.nbytes)))
        assert problem.code is Code.BACKEND
        assert "buffer_in_use" not in problem.context
        assert 0.4 < time.monotonic() - begun < 2
        way.pass_on()
        assert_reads_back(tier, other, chunk)


def test_a_value_that_trickles_is_given_up_at_its_time_out(server: RedisServer) -> None:
    """No single wait is long; all of them together are."""
    chunk = sealed_chunk(1, MIB)
    with relay(server.port) as way, opened(way.url, workers=1, timeout_s=0.5) as tier:
        put(tier, chunk)
        assert_reads_back(tier, chunk)
        way.trickle(0.02)
        begun = time.monotonic()
        assert failure(tier.read(chunk.id, aligned_buffer(chunk.buffer.nbytes))).code is Code.BACKEND
        assert time.monotonic() - begun < 2


def test_a_transfer_that_can_not_be_ended_says_that_the_buffer_is_in_use(server: RedisServer) -> None:
    """A reply of five bytes, one every 0.5 s: no wait between them is too long, so the watchdog answers."""
    chunk = sealed_chunk(1, 1000)
    with relay(server.port) as way, opened(way.url, workers=1, connect_timeout_s=0.2, timeout_s=0.6) as tier:
        tier.write(UNKNOWN, chunk.buffer).result(timeout=30)
        way.trickle(0.5)
        problem = failure(tier.write(chunk.id, chunk.buffer))
        assert (problem.code, problem.context["buffer_in_use"]) == (Code.BACKEND, True)
        way.pass_on()
    with opened(server.url) as tier:  # and it does not appear afterwards: its caller was told that it failed
        assert {found for found, _ in tier.inventory()} == {UNKNOWN}


# --- a server that is full --------------------------------------------------------------------------------------------


def test_a_full_server_refuses_whole_chunks_and_serves_on() -> None:
    chunks = [sealed_chunk(seed, 2 * MIB) for seed in range(20)]
    with redis_server(maxmemory="24mb") as server, opened(server.url) as tier:
        refused = [chunk for chunk in chunks if tier.write(chunk.id, chunk.buffer).exception() is not None]
        assert 5 < len(refused) < 18
        for chunk in refused:
            problem = failure(tier.write(chunk.id, chunk.buffer))
            assert problem.code is Code.QUOTA
            assert "maxmemory" in problem.message
            assert tier.size_of(chunk.id) is None
            assert tier.claims_of(chunk.id) == frozenset()
        kept = [chunk for chunk in chunks if chunk not in refused]
        assert dict(tier.inventory()) == {chunk.id: chunk.buffer.nbytes for chunk in kept}
        assert_reads_back(tier, *kept)
        assert all(tier.delete(chunk.id) for chunk in kept)
        put(tier, refused[0])
        assert_reads_back(tier, refused[0])
        assert tier.limit_bytes() == 24 * MIB


def test_a_full_server_lets_go_of_chunks_and_syncs() -> None:
    with redis_server(append_fsync="always") as server, opened(server.url) as tier:
        chunk = sealed_chunk(1, MIB)
        put(tier, chunk)
        with server.client() as client:
            client.config_set("maxmemory", "1mb")
        assert failure(tier.write(UNKNOWN, chunk.buffer)).code is Code.QUOTA
        tier.sync()
        tier.require_lasting()
        assert tier.delete(chunk.id)


def test_a_chunk_beyond_redis_own_limit_is_refused(tier: RedisTier) -> None:
    with mmap.mmap(-1, MAX_VALUE_BYTES + 4096) as memory, memoryview(memory) as huge:
        problem = failure(tier.write(UNKNOWN, huge))
    assert problem.code is Code.QUOTA
    assert tier.size_of(UNKNOWN) is None


# --- durability -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["always", "everysec"])
def test_what_was_synced_is_there_after_a_kill(how: str) -> None:
    chunks = [sealed_chunk(seed, 100_000) for seed in range(8)]
    with redis_server(append_fsync=how) as server, opened(server.url) as tier:
        put(tier, *chunks)
        tier.sync()
        state = tier.check_server()
        assert (state.durable, state.append_file) == (True, True)
        tier.require_lasting()
        server.kill()
        server.start()
        assert_reads_back(tier, *chunks)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "appendonly yes"),
        ({"append_fsync": "no"}, "appendfsync"),
        ({"append_fsync": "everysec", "more": ("--no-appendfsync-on-rewrite", "yes")}, "no-appendfsync-on-rewrite"),
        ({"append_fsync": "always", "more": ("--rename-command", "CONFIG", "")}, "CONFIG GET"),
    ],
    ids=["no file", "never synced", "not while rewriting", "does not tell"],
)
def test_a_server_that_may_lose_what_it_has_is_no_place_for_the_only_copy(options: dict[str, Any], reason: str) -> None:
    chunk = sealed_chunk(1, 1000)
    with redis_server(**options) as server, opened(server.url) as tier:
        put(tier, chunk)
        for call in (tier.sync, tier.require_lasting):
            with pytest.raises(CWMError, match=r"CWM-5002.*nothing leaves the disk for it") as raised:
                call()
            assert reason in raised.value.message
        assert not tier.check_server().durable
        assert reason in tier.condition()
        assert_reads_back(tier, chunk)


def test_a_sync_does_not_vouch_for_writes_to_an_earlier_start_of_the_server(durable: RedisServer) -> None:
    before, after = sealed_chunk(1, 1000), sealed_chunk(2, 1000)
    with opened(durable.url) as tier:
        put(tier, before)
        durable.restart()
        put(tier, after)
        with pytest.raises(CWMError, match=r"CWM-5002.*restarted"):
            tier.sync()
        tier.sync()
        durable.restart()
        tier.sync()  # what was settled needs no server to vouch for it


# --- the server itself ------------------------------------------------------------------------------------------------


def test_the_server_is_described() -> None:
    with redis_server(append_fsync="always", maxmemory="100mb") as server, opened(server.url) as tier:
        state = tier.check_server()
        assert state.version.startswith(("Redis ", "Valkey "))
        assert (state.maxmemory, state.maxmemory_policy, state.snapshots) == (100 * MIB, "noeviction", False)
        assert 0 < state.used_memory < 50 * MIB
        assert tier.condition() == state.sentence
        assert "of 100 MiB" in state.sentence
        assert "synced with every write" in state.sentence


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_is_refused(policy: str) -> None:
    with redis_server(append_fsync="always", policy=policy) as server, opened(server.url) as tier:
        for call in (tier.check_server, tier.condition, tier.require_lasting):
            with pytest.raises(CWMError, match=r"CWM-5002.*set maxmemory-policy noeviction"):
                call()


def test_a_replica_is_refused(durable: RedisServer) -> None:
    chunk = sealed_chunk(1, 1000)
    with redis_server(append_fsync="always") as primary, opened(durable.url) as tier:
        with durable.client() as client:
            client.replicaof("127.0.0.1", primary.port)
        with pytest.raises(CWMError, match=r"CWM-5002.*primary"):
            tier.require_lasting()
        problem = failure(tier.write(chunk.id, chunk.buffer))
        assert problem.code is Code.BACKEND
        assert "give the primary's address" in problem.message


def test_a_refused_command_is_named_by_what_to_allow(server: RedisServer) -> None:
    chunk = sealed_chunk(1, 1000)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "cwm", "on", ">word", "~cwm:*", "+@all", "-eval")
    with opened(server.url.replace("redis://", "redis://cwm:word@")) as tier:
        put(tier, chunk)
        with pytest.raises(CWMError, match=r"CWM-5002.*refuses a command.*allow its user"):
            tier.delete(chunk.id)
        assert_reads_back(tier, chunk)


def test_a_server_without_connections_left_is_named() -> None:
    with redis_server(more=("--maxclients", "1")) as server, server.client() as only:
        only.ping()
        with opened(server.url) as tier, pytest.raises(CWMError, match=r"CWM-5002.*maxclients"):
            tier.size_of(UNKNOWN)


# --- what people wrote in the setting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "redis://:half#pass@127.0.0.1:1",
        "redis://127.0.0.1:port",
        "redis://127.0.0.1:1?ssl_tricks=1",
        "redis://127.0.0.1:1/0?db=x",
        "rediss://127.0.0.1:1?ssl_cert_reqs=sometimes",
    ],
)
def test_what_can_be_no_url_is_refused_at_once_and_not_repeated(url: str) -> None:
    with pytest.raises(CWMError, match=r"CWM-1003.*CWM_REDIS_URL") as raised:
        RedisTier(url, NAMESPACE)
    assert not any(part in f"{raised.value} {raised.value.context}" for part in ("half", "#", "tricks", "127.0.0.1"))


@pytest.mark.parametrize("made", ["no password", "wrong password", "no TLS", "TLS on plain", "unknown authority"])
def test_no_error_and_no_log_line_shows_anything_of_the_url(made: str, caplog: pytest.LogCaptureFixture) -> None:
    chunk = sealed_chunk(1, 1000)
    caplog.set_level(logging.DEBUG)
    tls = made in ("no TLS", "unknown authority")
    with redis_server(password=SECRET, tls=tls, append_fsync="always") as server:
        url, says = {
            "no password": (f"redis://127.0.0.1:{server.port}", "password"),
            "wrong password": (f"redis://:letmein@127.0.0.1:{server.port}", "password"),
            "no TLS": (f"redis://:letmein@127.0.0.1:{server.port}", "does not answer"),
            "TLS on plain": (f"rediss://:letmein@127.0.0.1:{server.port}", "does not answer"),
            "unknown authority": (f"rediss://:letmein@127.0.0.1:{server.port}", "ssl_ca_certs"),
        }[made]
        problems = []
        with opened(url, connect_timeout_s=2) as tier:
            problems.append(failure(tier.write(chunk.id, chunk.buffer)))
            problems.append(failure(tier.read(chunk.id, aligned_buffer(chunk.buffer.nbytes))))
            for call in (tier.sync, tier.check_server, lambda: tier.delete(chunk.id)):
                with pytest.raises(CWMError) as raised:
                    call()
                problems.append(raised.value)
    for problem in problems:
        assert problem.code is Code.BACKEND
        assert says in problem.message
        assert "CWM_REDIS_URL" in problem.message
        shown = f"{problem} {problem.context} {caplog.text}"
        assert not any(part in shown for part in ("letmein", SECRET, "127.0.0.1", str(server.port)))


def test_a_certificate_may_go_unchecked_where_the_url_says_so() -> None:
    chunk = sealed_chunk(1, MIB)
    with redis_server(tls=True) as server:
        url = f"rediss://127.0.0.1:{server.port}/0?ssl_cert_reqs=none"
        with opened(url) as tier:
            put(tier, chunk)
            assert_reads_back(tier, chunk)
