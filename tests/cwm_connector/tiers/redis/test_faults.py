"""A Redis that goes away, hangs, breaks off or is full: every call ends in time, says why, and the next ones work."""

import mmap
import random
import socket
import time
from contextlib import nullcontext

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.tiers.redis.tier import MAX_VALUE_BYTES, REST_S, RedisTier
from tests.cwm_connector.tiers.chunks import MIB, UNKNOWN, aligned_buffer, assert_reads_back, failure, put, sealed_chunk
from tests.cwm_connector.tiers.redis.tiers import opened, wait_until_it_answers
from tests.support.redis_server import RedisServer, redis_server
from tests.support.relay import relay

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
            wait_until_it_answers(tier)
            put(tier, *batch[:5])
            with pytest.raises(CWMError) if any(p is None for p in outcomes[:10]) else nullcontext():
                tier.sync()
            tier.sync()
            synced |= {turn * 10 + n for n in range(5)}
            assert_reads_back(tier, *(chunks[seed] for seed in synced))


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
        wait_until_it_answers(tier)
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
            wait_until_it_answers(tier)
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
        wait_until_it_answers(tier)
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


def test_replies_that_trickle_are_given_up_at_the_time_out_of_all_of_them(server: RedisServer) -> None:
    chunk = sealed_chunk(1, 1000)
    with relay(server.port) as way, opened(way.url, workers=1, connect_timeout_s=0.2, timeout_s=0.6) as tier:
        put(tier, chunk)
        way.trickle(0.1)  # three replies, none of which takes too long
        problem = failure(tier.write(chunk.id, chunk.buffer))
        assert problem.code is Code.BACKEND
        assert "buffer_in_use" not in problem.context


def test_a_transfer_that_can_not_be_ended_says_so_and_leaves_nothing_behind(server: RedisServer) -> None:
    """The last reply before EXEC has nine bytes, one every 0.4 s: no wait is too long, so the watchdog answers."""
    chunk, other = sealed_chunk(1, 1000), sealed_chunk(2, 1000)
    with relay(server.port) as way, opened(way.url, workers=1, connect_timeout_s=0.2, timeout_s=0.6) as tier:
        put(tier, other)
        way.trickle(0.4, after=len("+OK\r\n+QUEUED\r\n"))
        problem = failure(tier.write(chunk.id, chunk.buffer))
        assert (problem.code, problem.context["buffer_in_use"]) == (Code.BACKEND, True)
        way.pass_on()
        until = time.monotonic() + 10
        while tier.write(other.id, other.buffer).exception() is not None:  # by the same thread, so after the first
            assert time.monotonic() < until
        assert {found for found, _ in tier.inventory()} == {other.id}  # its caller was told that it failed


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
