"""What the Redis tier says of a server, promises of it, and keeps to itself."""

import logging
import re
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.tiers.redis.tier import RedisTier
from tests.cwm_connector.tiers.chunks import MIB, UNKNOWN, aligned_buffer, assert_reads_back, failure, put, sealed_chunk
from tests.cwm_connector.tiers.redis.tiers import NAMESPACE, SECRET, opened
from tests.support.powercut import compiler, cut_after
from tests.support.redis_server import Options, RedisServer, redis_server
from tests.support.relay import relay

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


_WRITE_AND_SYNC = """
from tests.cwm_connector.tiers.chunks import put, sealed_chunk
from tests.cwm_connector.tiers.redis.tiers import opened
from tests.support.redis_server import Options, RedisServer

server = RedisServer(root, Options(append_fsync={how!r}))
server.start()
power.settle()
with opened(server.url) as tier:
    put(tier, *(sealed_chunk(seed, 100_000) for seed in range(8)))
    tier.sync()
server.kill()
"""


@pytest.mark.skipif(compiler() is None, reason="no C compiler (cc, gcc): power cuts can't be modelled")
@pytest.mark.parametrize("how", ["always", "everysec"])
def test_what_was_synced_is_there_after_a_power_cut(how: str) -> None:
    with tempfile.TemporaryDirectory(prefix="cwm-redis-") as folder:  # a Unix socket's path must be short
        root = cut_after(Path(folder), _WRITE_AND_SYNC.format(how=how))
        server = RedisServer(root, Options(append_fsync=how))
        server.start()
        try:
            with opened(server.url) as tier:
                assert_reads_back(tier, *(sealed_chunk(seed, 100_000) for seed in range(8)))
        finally:
            server.close()


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
        for call in (tier.check_server, tier.require_lasting):
            with pytest.raises(CWMError, match=r"CWM-5002.*primary"):
                call()
        problem = failure(tier.write(chunk.id, chunk.buffer))
        assert problem.code is Code.BACKEND
        assert "give the primary's address" in problem.message


def test_one_node_of_several_is_refused() -> None:
    chunks = [sealed_chunk(seed, 1000) for seed in range(40)]
    joining = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
    with redis_server(cluster=True) as one, redis_server(more=joining) as two, opened(one.url) as tier:
        with one.client() as first, two.client() as second:
            # In this order: a node that has once heard of a slot's owner never forgets it.
            first.execute_command("CLUSTER DELSLOTS", *range(8192))
            second.execute_command("CLUSTER MEET", "127.0.0.1", one.port)
            until = time.monotonic() + 30
            while first.execute_command("CLUSTER INFO")["cluster_size"] != "2":
                with suppress(redis.ResponseError):  # it may know the slots as the other's still
                    second.execute_command("CLUSTER ADDSLOTS", *range(8192))
                assert time.monotonic() < until
                time.sleep(0.05)
            while first.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                assert time.monotonic() < until
                time.sleep(0.05)
        with pytest.raises(CWMError, match=r"CWM-5002.*one node of a cluster of several"):
            tier.check_server()
        problems = [tier.write(chunk.id, chunk.buffer).exception(timeout=30) for chunk in chunks]
        refused = [problem for problem in problems if problem is not None]
        assert 0 < len(refused) < len(chunks)
        assert all("one node of a cluster of several" in str(problem) for problem in refused)


def test_a_refused_command_is_named_by_what_to_allow(server: RedisServer) -> None:
    chunk = sealed_chunk(1, 1000)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "cwm", "on", ">word", "~cwm:*", "+@all", "-eval")
    with opened(server.url.replace("redis://", "redis://cwm:word@")) as tier:
        put(tier, chunk)
        with pytest.raises(CWMError, match=r"CWM-5002.*refuses a command.*allow its user"):
            tier.delete(chunk.id)
        assert_reads_back(tier, chunk)


def test_the_commands_that_the_docs_list_are_enough() -> None:
    chunk = sealed_chunk(1, 1000)
    listed = re.search(r"^    (-@all [^\n]+)$", (Path(__file__).parents[4] / "docs/redis.md").read_text(), re.MULTILINE)
    assert listed is not None
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(append_fsync="everysec"))
        client = stack.enter_context(server.client())
        client.execute_command("ACL", "SETUSER", "cwm", "on", ">word", "resetkeys", "~cwm:*", *listed[1].split())
        tier = stack.enter_context(opened(server.url.replace("redis://", "redis://cwm:word@"), shared=True))
        put(tier, chunk)
        assert_reads_back(tier, chunk)
        tier.sync()
        tier.require_lasting()
        assert [found for found, _ in tier.inventory()] == [chunk.id]
        assert tier.claims_of(chunk.id) == {""}
        assert tier.delete(chunk.id)


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


def test_a_second_connection_that_fails_shows_no_address(server: RedisServer) -> None:
    with relay(server.port) as way, opened(way.url) as tier:
        tier.size_of(UNKNOWN)
        way.refuse()
        with pytest.raises(CWMError, match=r"CWM-5002") as raised:
            tier.check_server()
        assert not any(part in f"{raised.value} {raised.value.context}" for part in ("127.0.0.1", str(way.port)))


def test_a_certificate_may_go_unchecked_where_the_url_says_so() -> None:
    chunk = sealed_chunk(1, MIB)
    with redis_server(tls=True) as server:
        url = f"rediss://127.0.0.1:{server.port}/0?ssl_cert_reqs=none"
        with opened(url) as tier:
            put(tier, chunk)
            assert_reads_back(tier, chunk)
