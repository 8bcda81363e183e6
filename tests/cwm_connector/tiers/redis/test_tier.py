"""The Redis tier on a real server: bytes come back bit for bit, or a code says why not."""

import random
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Claim
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import check
from cwm_connector.tiers.redis.tier import RedisTier
from tests.cwm_connector.tiers.chunks import MIB, UNKNOWN, aligned_buffer, assert_reads_back, failure, put, sealed_chunk
from tests.cwm_connector.tiers.redis.tiers import NAMESPACE, SECRET, opened, value_key
from tests.support.redis_server import RedisServer, redis_server

MINE, THEIRS = Claim("engine-a:1"), Claim("engine-b:2")


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
        client.mset({f"{NAMESPACE}:{{me}}:chunk": b"no chunk", f"{NAMESPACE}:{{{'0' * 64}.1}}:{{}}:chunk": b"neither"})
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


def test_a_write_whose_claim_can_not_be_kept_has_failed(tier: RedisTier, server: RedisServer) -> None:
    chunk = sealed_chunk(1, 1000)
    with server.client() as client:
        client.set(value_key(chunk).replace(":chunk", ":claims"), b"somebody's")
    assert failure(tier.write(chunk.id, chunk.buffer, MINE)).code is Code.BACKEND


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
