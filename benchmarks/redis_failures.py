"""Show how each client of Redis fails: `python -m benchmarks.redis_failures`.

Each GET reports what it read: the right bytes, those of another key, or an error by its name.

Every trial is a process of its own with a real server of its own. It is ended after ten seconds, and "hangs" means
that it was still waiting. LMCache's client runs without guards, redis-py as `redis.Redis(socket_timeout=2)`. Ours is
the tier.
"""

import functools
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import redis
from rich.console import Console
from rich.table import Table

from cwm_connector.core.types import ChunkKey
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.redis.tier import RedisTier
from tests.support.redis_server import RedisServer, redis_server

LIMIT_S: Final = 10
SIZE: Final = 1 << 20
NAMES: Final = ("one", "two", "none")


class LMCache:
    """LMCache's client without guards."""

    def __init__(self, server: RedisServer, url: str) -> None:
        from lmcache.lmcache_redis import LMCacheRedisClient  # after the tiers, which quiet its log

        if url.startswith("rediss"):
            raise NotImplementedError("no TLS")
        self._client = LMCacheRedisClient("::1" if "[::1]" in url else "127.0.0.1", server.port, 1)
        self._done = select.poll()
        self._done.register(self._client.event_fd(), select.POLLIN)

    def put(self, name: str, value: bytearray) -> None:
        self._finish(self._client.submit_batch_set([name], [memoryview(value)]))

    def get(self, name: str, target: bytearray) -> None:
        self._finish(self._client.submit_batch_get([name], [memoryview(target)]))

    def _finish(self, submitted: int) -> None:
        while True:
            self._done.poll()
            for number, ok, reason, results in self._client.drain_completions():
                if number == submitted:
                    if not ok or not all(results or [True]):
                        raise RuntimeError(reason or "not found")
                    return


class RedisPy:
    """redis-py with a time-out of two seconds."""

    def __init__(self, server: RedisServer, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=2)

    def put(self, name: str, value: bytearray) -> None:
        self._client.set(name, memoryview(value))

    def get(self, name: str, target: bytearray) -> None:
        found: Any = self._client.get(name)
        if found is None:
            raise LookupError("not found")
        target[:] = found


class Ours:
    """The Redis tier."""

    def __init__(self, server: RedisServer, url: str) -> None:
        self._tier = RedisTier(url, "trial", connect_timeout_s=1, timeout_s=2)

    def put(self, name: str, value: bytearray) -> None:
        self._tier.write(_chunk(name), memoryview(value)).result()

    def get(self, name: str, target: bytearray) -> None:
        self._tier.read(_chunk(name), memoryview(target)).result()


def _chunk(name: str) -> ChunkId:
    return ChunkId(ChunkKey(name.encode().ljust(32)), 0)


CLIENTS: Final[dict[str, Callable[[RedisServer, str], Any]]] = {
    "LMCache resp": LMCache,
    "redis-py": RedisPy,
    "the tier": Ours,
}


class Trial:
    """One client in one situation. Each step prints its outcome in a word or two."""

    def __init__(self, client: str, server: RedisServer, url: str | None = None) -> None:
        self.server = server
        self._make = functools.partial(CLIENTS[client], server, url or server.url)
        self._client: Any = None  # made in the first step

    def put(self, name: str) -> None:
        """Write a value. Print nothing if that succeeds."""
        self._step("SET", lambda: self._client.put(name, _value(name)), "")

    def get(self, name: str, size: int = SIZE) -> None:
        """Read a value and print what was read."""
        target = bytearray(size)

        def ask() -> None:
            self._client.get(name, target)
            if target != _value(name):
                others = [other for other in NAMES if other != name and target == _value(other)]
                raise AssertionError(f"WRONG BYTES, those of {others[0]!r}" if others else "WRONG BYTES")

        self._step("GET", ask, "right")

    def _step(self, what: str, work: Callable[[], None], otherwise: str) -> None:
        try:
            if self._client is None:
                self._client = self._make()
            work()
        except AssertionError as wrong:
            print(f"{what}: {wrong}", flush=True)
        except Exception as problem:
            code = f"CWM-{problem.code.value}" if hasattr(problem, "code") and hasattr(problem, "message") else None
            print(f"{what}: {code or type(problem).__name__}", flush=True)
        else:
            if otherwise:
                print(f"{what}: {otherwise}", flush=True)


def _value(name: str) -> bytearray:
    return bytearray(name.encode().ljust(16) * (SIZE // 16))


def missing(trial: Trial) -> None:
    trial.get("none")


def down(trial: Trial) -> None:
    trial.server.stop()
    trial.get("one")
    trial.server.start()
    trial.get("none")


def restarted(trial: Trial) -> None:
    trial.put("one")
    trial.server.restart()
    trial.get("one")
    trial.get("one")


def other_length(trial: Trial) -> None:
    trial.put("one")
    trial.put("two")
    trial.get("one", SIZE // 2)
    trial.get("two")


def full(trial: Trial) -> None:
    trial.put("one")
    with trial.server.client() as client:
        client.config_set("maxmemory", "1mb")
    trial.put("two")
    trial.get("one")
    trial.get("two")


def hanging(trial: Trial) -> None:
    trial.put("one")
    trial.server.pause()
    trial.get("one")
    trial.server.resume()
    trial.get("one")


def reached(trial: Trial) -> None:
    trial.put("one")
    trial.get("one")


SITUATIONS: Final[dict[str, Callable[[Trial], None]]] = {
    "GET of a missing key": missing,
    "server down, then started": down,
    "server restarted between": restarted,
    "value of another length, then another": other_length,
    "memory limit (OOM), then GETs": full,
    "server hangs, then goes on": hanging,
    "over TLS": reached,
    "over IPv6": reached,
}


def run(client: str, situation: str) -> None:
    """Run one trial in this process."""
    with ExitStack() as stack:
        tls, ipv6 = situation == "over TLS", situation == "over IPv6"
        more = ("--bind", "127.0.0.1", "::1") if ipv6 else ()
        server = stack.enter_context(redis_server(append_fsync="always", tls=tls, more=more))
        SITUATIONS[situation](Trial(client, server, server.url.replace("127.0.0.1", "[::1]") if ipv6 else None))


def tried(client: str, situation: str) -> str:
    """Run one trial in a process of its own and return what it printed, or that it hangs."""
    command = [sys.executable, "-m", "benchmarks.redis_failures", client, situation]
    with (
        tempfile.TemporaryDirectory() as folder,
        # The process has a group of its own, so that the trial's server ends with it.
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": folder},
        ) as process,
    ):
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
            ended = [] if process.returncode == 0 else [f"process ended ({process.returncode})"]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            ended = ["hangs"]
    return "; ".join([*said.splitlines(), *ended])


def main() -> None:
    """Run all trials and print the table. With two arguments, run one trial."""
    if len(sys.argv) == 3:
        run(*sys.argv[1:])
        return
    table = Table("", *CLIENTS, title=f"What each client did, {LIMIT_S} s for each trial", show_lines=True)
    for situation in SITUATIONS:
        table.add_row(situation, *(tried(client, situation) for client in CLIENTS))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
