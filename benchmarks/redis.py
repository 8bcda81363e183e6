"""Measure how fast clients move chunks to and from Redis: `python -m benchmarks.redis [--rounds 9]`.

The benchmark starts a redis-server of its own on 127.0.0.1, without a file, and moves values of three sizes. The
measure is a GET and a SET with nothing but a socket: read the head of the reply, then `recv_into` the target. Every
client moves the same bytes, over one connection and over two. The tier adds checksums and claims.

The clients take turns within every round. Right before each call, the raw socket moves the same bytes. A share is the
ratio of these two calls, so that other work on the machine slows both. hiredis is measured if it is installed (`pip
install hiredis`). LMCache's client runs behind the guards that it needs: PING, EXISTS, a time-out.
"""

import argparse
import os
import select
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final, NamedTuple, Protocol

import redis
from redis._parsers import _HiredisParser, _RESP2Parser
from redis.connection import Connection, PythonRespSerializer
from redis.utils import HIREDIS_AVAILABLE
from rich.console import Console
from rich.table import Table

from benchmarks.tiers import MIB, SIZES, Batch
from cwm_connector.redis import ChunkConnection, CircuitBreaker
from cwm_connector.tiers.chunk import check, seal
from cwm_connector.tiers.redis.tier import RedisTier
from tests.support.redis_server import RedisServer, redis_server

RAW: Final = "raw socket, 1 connection"
LARGE_READ: Final = MIB
BATCH_BYTES: Final = 64 * MIB
"""How much one timed call moves."""
TIMEOUT_S: Final = 30.0


class Client(Protocol):
    """A client that moves one value at a time over one connection."""

    def put(self, key: str, source: memoryview) -> None:
        """Write the value."""

    def get(self, key: str, target: memoryview) -> None:
        """Read the value into `target`."""


class Raw:
    """A socket and nothing else."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, key: str, source: memoryview) -> None:
        self._socket.sendall(f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${source.nbytes}\r\n".encode())
        self._socket.sendall(source)
        self._socket.sendall(b"\r\n")
        self._fill(memoryview(bytearray(len(b"+OK\r\n"))))

    def get(self, key: str, target: memoryview) -> None:
        self._socket.sendall(f"*2\r\n$3\r\nGET\r\n${len(key)}\r\n{key}\r\n".encode())
        self._fill(memoryview(bytearray(len(f"${target.nbytes}\r\n"))))
        self._fill(target)
        self._fill(memoryview(bytearray(2)))

    def _fill(self, target: memoryview) -> None:
        done = 0
        while done < target.nbytes:
            done += self._socket.recv_into(target[done:])


class RedisPy:
    """redis-py as `redis.Redis` uses it, and a copy of the value to its target."""

    def __init__(self, port: int, parser: type, read_size: int = 32_768) -> None:
        more: dict[str, Any] = {"socket_read_size": read_size, "protocol": 2, "driver_info": None}
        if parser is _RESP2Parser:  # otherwise it packs with hiredis, if that is installed
            more["command_packer"] = PythonRespSerializer(6000, _encoded)
        self._connection: Any = Connection("127.0.0.1", port, parser_class=parser, socket_timeout=TIMEOUT_S, **more)

    def put(self, key: str, source: memoryview) -> None:
        self._connection.send_command("SET", key, source)
        self._connection.read_response()

    def get(self, key: str, target: memoryview) -> None:
        self._connection.send_command("GET", key)
        target[:] = self._connection.read_response()


class InPlace:
    """The tier's own connection."""

    def __init__(self, url: str) -> None:
        self._pipe = ChunkConnection(url, CircuitBreaker(1.0), connect_timeout_s=5.0)

    def put(self, key: str, source: memoryview) -> None:
        self._pipe.call(("SET", key, source), deadline=time.monotonic() + TIMEOUT_S)

    def get(self, key: str, target: memoryview) -> None:
        self._pipe.call(("GET", key), deadline=time.monotonic() + TIMEOUT_S, into=target)


class Guarded:
    """LMCache's client behind guards: it is used only if the server answers and the keys exist."""

    def __init__(self, port: int, workers: int) -> None:
        from lmcache.lmcache_redis import LMCacheRedisClient  # after the tiers, which quiet its log

        redis.Redis(port=port).ping()
        self._client = LMCacheRedisClient("127.0.0.1", port, workers)
        self._done = select.poll()
        self._done.register(self._client.event_fd(), select.POLLIN)

    def put_all(self, keys: Sequence[str], sources: Sequence[memoryview]) -> None:
        self._finish([self._client.submit_batch_set([key], [each]) for key, each in zip(keys, sources, strict=True)])

    def get_all(self, keys: Sequence[str], targets: Sequence[memoryview]) -> None:
        self._finish([self._client.submit_batch_exists([key]) for key in keys])
        self._finish([self._client.submit_batch_get([key], [each]) for key, each in zip(keys, targets, strict=True)])

    def close(self) -> None:
        self._client.close()

    def _finish(self, submitted: Sequence[int]) -> None:
        waiting = set(submitted)
        while waiting:
            if not self._done.poll(TIMEOUT_S * 1000):
                raise TimeoutError
            for number, ok, reason, results in self._client.drain_completions():
                if not ok or not all(results or [True]):
                    raise RuntimeError(reason or "a key does not exist")
                waiting.discard(number)


# --- candidates: each moves the batch once ----------------------------------------------------------------------------


class Candidates:
    """Every client that is measured, connected. `put` and `get` hold the calls by name."""

    def __init__(self, server: RedisServer) -> None:
        self.put: dict[str, Callable[[Batch], None]] = {}
        self.get: dict[str, Callable[[Batch], None]] = {}
        self._close: list[Callable[[], None]] = []
        port = server.port
        self._threaded(RAW, [Raw(port)])
        makes: list[tuple[str, Callable[[], Client]]] = [("redis-py", lambda: RedisPy(port, _RESP2Parser))]
        if HIREDIS_AVAILABLE:
            makes.append(("redis-py + hiredis", lambda: RedisPy(port, _HiredisParser)))
            makes.append(("redis-py + hiredis, 1 MiB reads", lambda: RedisPy(port, _HiredisParser, LARGE_READ)))
        makes.append(("redis-py, received in place", lambda: InPlace(server.url)))
        for name, make in makes:
            for count in (1, 2):
                self._threaded(_named(name, count), [make() for _ in range(count)])
        for count in (1, 2):
            self._lmcache(_named("LMCache resp, guarded", count), Guarded(port, count))
        for count in (1, 2):
            self._tier(_named("the tier, checked", count), RedisTier(server.url, f"bench{count}", workers=count))

    def close(self) -> None:
        for close in self._close:
            close()

    def _threaded(self, name: str, clients: Sequence[Client]) -> None:
        threads = ThreadPoolExecutor(len(clients))
        self._close.append(threads.shutdown)

        def share(batch: Batch, one: Callable[[Client, str, int], None]) -> None:
            keys = _keys(name, batch)

            def work(number: int) -> None:
                for index in range(number, len(keys), len(clients)):
                    one(clients[number], keys[index], index)

            list(threads.map(work, range(len(clients))))

        self.put[name] = lambda batch: share(batch, lambda client, key, at: client.put(key, batch.sources[at]))
        self.get[name] = lambda batch: share(batch, lambda client, key, at: client.get(key, batch.targets[at]))

    def _lmcache(self, name: str, client: Guarded) -> None:
        self._close.append(client.close)
        self.put[name] = lambda batch: client.put_all(_keys(name, batch), batch.sources)
        self.get[name] = lambda batch: client.get_all(_keys(name, batch), batch.targets)

    def _tier(self, name: str, tier: RedisTier) -> None:
        self._close.append(tier.close)

        def put(batch: Batch) -> None:
            writes = []
            for chunk, header, source in zip(batch.ids, batch.headers, batch.sources, strict=True):
                seal(source, header)
                writes.append(tier.write(chunk, source))
            for write in writes:
                write.result()

        def get(batch: Batch) -> None:
            reads = [tier.read(chunk, target) for chunk, target in zip(batch.ids, batch.targets, strict=True)]
            for read, header, target in zip(reads, batch.headers, batch.targets, strict=True):
                read.result()
                check(target, header)

        self.put[name] = put
        self.get[name] = get


def _named(name: str, connections: int) -> str:
    return f"{name}, {connections} connection{'s' * (connections > 1)}"


def _keys(name: str, batch: Batch) -> list[str]:
    return [f"{name}:{chunk.key.hex()}".replace(" ", "") for chunk in batch.ids]


def _encoded(argument: Any) -> bytes | memoryview:
    return argument if isinstance(argument, bytes | memoryview) else str(argument).encode()


# --- measuring --------------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """MiB/s, and the share of the raw socket's speed right before."""

    speed: float
    share: float


Figures = dict[str, dict[int, list[Sample]]]


def timed(call: Callable[[Batch], None], batch: Batch) -> float:
    """Return the MiB/s of one call."""
    begun = time.perf_counter()
    call(batch)
    return batch.n_bytes / MIB / (time.perf_counter() - begun)


def one_round(batch: Batch, calls: dict[str, Callable[[Batch], None]]) -> Iterator[tuple[str, Sample]]:
    """Yield one sample of each call."""
    for name, call in calls.items():
        raw = timed(calls[RAW], batch)
        for target in batch.targets:
            target[:64] = bytes(64)  # so that a call that reads nothing is noticed
        speed = timed(call, batch)
        yield name, Sample(speed, speed / raw)


def measure(server: RedisServer, rounds: int) -> dict[str, Figures]:
    """Return the samples of every client, size and round. The first round does not count."""
    figures: dict[str, Figures] = {"GET": {}, "SET": {}}
    with closing(Candidates(server)) as candidates, server.client() as client:
        for size in SIZES:
            batch = Batch(size, BATCH_BYTES)
            for number in range(rounds + 1):
                for kind, calls in (("SET", candidates.put), ("GET", candidates.get)):
                    for name, sample in one_round(batch, calls):
                        if number:  # the first one connects
                            figures[kind].setdefault(name, {}).setdefault(size, []).append(sample)
                        if kind == "GET" and batch.sources != batch.targets:
                            raise RuntimeError(f"{name} read other bytes than were written")
            client.flushall()
    return figures


def table(title: str, figures: Figures) -> Table:
    """Return a table of medians with the range of the speed."""
    made = Table(title=title)
    made.add_column("")
    for size in SIZES:
        made.add_column(f"{size / MIB:g} MiB", justify="right")
    for name, speeds in figures.items():
        cells = []
        for samples in speeds.values():
            each = [sample.speed for sample in samples]
            share = statistics.median(sample.share for sample in samples)
            cells.append(f"{statistics.median(each):,.0f} ({min(each):,.0f}–{max(each):,.0f}) {share:4.0%}")
        made.add_row(name, *cells)
    return made


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each call is timed")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with redis_server() as server:
        with server.client() as client:
            version = client.info("server")["redis_version"]
        figures = measure(server, options.rounds)
    what = f"MiB/s, median (lowest–highest) of {options.rounds}, and the share of the raw socket's"
    console = Console(width=160)
    for kind, each in figures.items():
        console.print(table(f"{kind}: {what}", each))
    console.print(
        f"redis-server {version}, {os.cpu_count()} CPUs, load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )


if __name__ == "__main__":
    main()
