"""The link to a real Redis: bounded, silent about its URL, and honest about what is on disk."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis import Durability, NoReply, RedisLink, require_for_catalog
from tests.support.redis_server import RedisServer, redis_server

BRISK_S = 0.3


@contextmanager
def linked(url: str) -> Iterator[RedisLink]:
    with closing(RedisLink(url, connect_timeout_s=BRISK_S, timeout_s=BRISK_S)) as link:
        yield link


@pytest.fixture
def link(server: RedisServer) -> Iterator[RedisLink]:
    with linked(server.url) as opened:
        yield opened


# --- calls ---


def test_what_is_no_url_is_refused_without_showing_it() -> None:
    with pytest.raises(CWMError) as refused:
        RedisLink("redis://:s3cret@host:port/0")
    assert refused.value.code is Code.ARGUMENT
    assert "s3cret" not in f"{refused.value} {refused.value.context} {refused.value.__cause__}"


def test_a_stopped_server_is_given_up_in_time_and_its_late_reply_answers_nothing(
    server: RedisServer, link: RedisLink
) -> None:
    link.call("SET", "key", "old")
    server.pause()
    started = time.monotonic()
    with pytest.raises(NoReply) as lost:
        link.call("GET", "key")
    assert time.monotonic() - started < 3 * BRISK_S
    assert (lost.value.code, lost.value.timed_out) == (Code.BACKEND, True)
    server.resume()
    link.call("SET", "key", "new")
    assert link.call("ECHO", "hello") == b"hello"


def test_only_what_may_be_repeated_is_sent_again_after_a_restart(server: RedisServer, link: RedisLink) -> None:
    link.call("SET", "key", "value")
    server.restart()
    assert link.call("GET", "key", repeatable=True) == b"value"
    server.restart()
    with pytest.raises(NoReply):
        link.call("INCR", "number")
    assert link.call("INCR", "number") == 1


def test_a_server_that_is_not_there_has_executed_nothing() -> None:
    with linked("redis://127.0.0.1:1/0") as link, pytest.raises(CWMError) as refused:
        link.call("INCR", "number")
    assert refused.value.code is Code.BACKEND
    assert not isinstance(refused.value, NoReply)


def test_a_refused_command_leaves_the_connection_whole(link: RedisLink) -> None:
    link.call("SET", "key", "value")
    with pytest.raises(CWMError) as refused:
        link.call("HGET", "key", "field")
    assert refused.value.code is Code.BACKEND
    assert link.call("GET", "key") == b"value"


def test_a_full_server_is_a_matter_of_quota(link: RedisLink) -> None:
    link.call("CONFIG", "SET", "maxmemory", "1")
    for command in (("SET", "key", "value"), ("EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "key")):
        with pytest.raises(CWMError) as refused:
            link.call(*command)
        assert refused.value.code is Code.QUOTA


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_passwords_and_tls_come_with_the_url(tls: bool) -> None:
    with redis_server(append_fsync="always", password="p4ss/w@rd", tls=tls) as server, linked(server.url) as link:
        assert link.call("PING") == b"PONG"
    with redis_server(append_fsync="always", password="p4ss/w@rd", tls=tls) as server:
        url = server.url.replace("p4ss", "wr0ng")
        with linked(url) as link, pytest.raises(CWMError, match="user or the password") as refused:
            link.call("PING")
        assert "wr0ng" not in f"{refused.value} {refused.value.context}"


def test_a_unix_socket_serves_too(server: RedisServer) -> None:
    with linked(server.unix_url) as link:
        assert link.call("PING") == b"PONG"


# --- durability ---


def test_the_servers_way_of_syncing_is_known(server: RedisServer, link: RedisLink) -> None:
    assert link.state().durability is Durability.EACH_WRITE
    with redis_server(append_fsync="everysec") as other, linked(other.url) as slower:
        assert slower.state().durability is Durability.EACH_SECOND


def test_a_replica_is_refused(server: RedisServer) -> None:
    with redis_server(append_fsync="always", more=("--replicaof", "127.0.0.1", str(server.port))) as replica:
        with linked(replica.url) as link, pytest.raises(CWMError, match="primary") as refused:
            require_for_catalog(link.state())
        assert refused.value.code is Code.ARGUMENT


def synced(trace: Path, after: float, before: float) -> bool:
    """A sync began between the two; the tracer may take a moment to write that down."""
    deadline = time.monotonic() + 5
    while True:
        begun = [float(line.split()[1]) for line in trace.read_text().splitlines() if "sync(" in line]
        if any(after < moment < before for moment in begun) or time.monotonic() > deadline:
            return any(after < moment < before for moment in begun)
        time.sleep(0.02)  # nothing tells that a tracer has written


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows when the server really syncs")
def test_settling_waits_for_a_sync_that_began_after_the_write(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with redis_server(append_fsync="everysec") as server, linked(server.url) as link:
        command = ["strace", "-f", "-ttt", "-e", "trace=fdatasync,fsync", "-o", str(trace), "-p", str(server.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracing:
            assert tracing.stderr is not None
            if b"attached" not in tracing.stderr.readline():
                pytest.skip("this user may not trace the server")
            try:
                link.state()
                for _ in range(3):
                    begun = time.time()  # where a sync is due, the server begins it before it replies
                    link.call("SET", "key", "value")
                    link.sync()
                    assert synced(trace, begun, time.time())
            finally:
                tracing.terminate()


def test_settling_fails_where_the_server_stops_keeping_its_file(server: RedisServer, link: RedisLink) -> None:
    link.call("SET", "key", "value")
    link.sync()
    with server.client() as client:
        client.config_set("appendonly", "no")
    with pytest.raises(CWMError) as refused:
        link.sync()
    assert refused.value.code is Code.BACKEND


def test_settling_takes_note_of_another_way_of_syncing(server: RedisServer, link: RedisLink) -> None:
    link.call("SET", "key", "value")
    link.sync()
    with server.client() as client:
        client.config_set("appendfsync", "everysec")
    with pytest.raises(CWMError):
        link.sync()
    link.call("SET", "key", "value")
    assert link.state().durability is Durability.EACH_SECOND


def test_settling_says_nothing_of_what_another_connection_wrote(server: RedisServer, link: RedisLink) -> None:
    """The server may have restarted without it."""
    link.call("SET", "key", "value")
    server.kill()
    server.start()
    for _ in range(2):
        with pytest.raises(NoReply):
            link.sync()


def test_settling_gives_up_in_time_on_a_stopped_server(server: RedisServer, link: RedisLink) -> None:
    link.call("SET", "key", "value")
    link.sync()
    server.pause()
    started = time.monotonic()
    with pytest.raises(NoReply):
        link.sync()
    assert time.monotonic() - started < 3 * BRISK_S
    server.resume()
