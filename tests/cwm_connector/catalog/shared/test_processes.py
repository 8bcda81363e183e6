"""Real processes at one shared catalog: several at once, killed with -9, with a Redis that is killed and stopped."""

import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from cwm_connector.catalog.base import Catalog, SortBy, WindowQuery
from cwm_connector.catalog.shared.catalog import RedisCatalog
from cwm_connector.catalog.shared.checkpoint import publish
from cwm_connector.catalog.shared.follow import FollowLimits
from cwm_connector.catalog.shared.log import RedisLog
from cwm_connector.redis import RedisLink
from tests.cwm_connector.catalog.engines import Engines, shared_content
from tests.cwm_connector.catalog.samples import chain, names, token_ids
from tests.cwm_connector.catalog.sqlite.writer import do, names_after, window_of
from tests.support.redis_server import RedisServer, redis_server

ROOT = Path(__file__).parents[4]
LOOPS = 60
STEPS = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(append_fsync="always") as started:
        yield started


# --- writers at once ---


def started(shared: Engines, name: str, steps: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.cwm_connector.catalog.shared.writer", shared.url, shared.namespace]
    command += [str(shared.path(name)), name, str(steps)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def acknowledged(process: "subprocess.Popen[str]", timeout_s: float = 90) -> tuple[set[str], set[str]]:
    """What the writer was told that it made and deleted; it has to end by itself and well."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0
    lines = output.split()
    return {line[1:] for line in lines if line[0] == "+"}, {line[1:] for line in lines if line[0] == "-"}


def assert_one_truth(shared: Engines, writers: dict[str, "subprocess.Popen[str]"]) -> None:
    """Every acknowledged change is there, each name was given once, and all replicas and a new one are equal."""
    made: list[str] = []
    deleted: set[str] = set()
    for process in writers.values():
        plus, minus = acknowledged(process)
        made += plus
        deleted |= minus
    assert len(made) == len(set(made)), "a name was given twice"
    assert {f"all{step}" for step in range(STEPS)} <= set(made)
    catalogs = [shared.open(name) for name in (*writers, "new")]
    for catalog in catalogs:
        catalog.catch_up()
        assert names(catalog) == set(made) - deleted
    contents = [shared_content(shared.path(name)) for name in (*writers, "new")]
    assert all(content == contents[0] for content in contents)


@pytest.mark.timeout(180)
def test_what_two_engines_write_at_once_is_one_catalog(shared: Engines) -> None:
    writers = {name: started(shared, name, STEPS) for name in ("a", "b")}
    assert_one_truth(shared, writers)


@pytest.mark.timeout(180)
def test_a_redis_that_is_killed_and_stopped_loses_nothing_that_was_acknowledged(
    shared: Engines, server: RedisServer
) -> None:
    writers = {name: started(shared, name, STEPS) for name in ("a", "b")}
    choose = random.Random()
    rounds = 0
    while any(process.poll() is None for process in writers.values()) and rounds < 8:
        wait_for_output(writers, choose.uniform(0.05, 0.4))
        if rounds % 2:
            server.pause()
            wait_for_output(writers, 1.2)  # over the writers' time-outs
            server.resume()
        else:
            server.kill()
            server.start()
        rounds += 1
    assert rounds > 2
    assert_one_truth(shared, writers)


def wait_for_output(writers: dict[str, "subprocess.Popen[str]"], timeout_s: float) -> None:
    """Lets the writers run; ends early once all of them have ended."""
    deadline = time.monotonic() + timeout_s
    for process in writers.values():
        if process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))


# --- kill -9 ---


class Forked:
    """`work` in a process of its own, forked so that a hundred of them cost little; each `tell` there counts here."""

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        self._told, self._killed = 0, False
        self._pipe, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                work(lambda: tell(told))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(told)

    def wait_for(self, count: int) -> None:
        while self._told < count:
            ready, _, _ = select.select([self._pipe], [], [], 20)
            assert ready, "it stands still"
            told = len(os.read(self._pipe, count - self._told))
            assert told, "it failed"
            self._told += told

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> int:
        """How often it told."""
        if self._killed:
            return self._told
        self._killed = True
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        with os.fdopen(self._pipe, "rb") as pipe:
            self._told += len(pipe.read())
        return self._told


def tell(pipe: int) -> None:
    os.write(pipe, b".")


def assert_whole(catalog: Catalog, name: str) -> None:
    origin = name if name.startswith("w") else f"w{int(name[1:]) - 1}"
    step = int(origin[1:])
    chunks = chain(f"c{step // 4}", window_of(step)[1])
    assert [row.key for row in catalog.chunks_of(name)] == [row.key for row in chunks]
    assert catalog.token_ids_of(name) == token_ids(origin, chunks)


def newest(catalog: Catalog, count: int) -> list[str]:
    return [row.name for row in catalog.list_windows(WindowQuery(sort_by=SortBy.CREATED_AT, limit=count)).windows]


@pytest.mark.timeout(180)
def test_what_was_acknowledged_survives_kill_9_of_the_engine(shared: Engines) -> None:
    """After each kill the engine starts again: exactly the acknowledged steps, or those and the one under way; and
    another engine, without a restart, knows the same."""
    choose = random.Random()
    other = shared.open("other")
    done = 0
    for _ in range(LOOPS):

        def work(tell: Callable[[], None], first: int = done) -> None:
            catalog = RedisCatalog.open(shared.url, shared.namespace, shared.path("a"), home_id="a")
            for step in range(first, first + 10_000):
                do(catalog, step)
                tell()

        with Forked(work) as process:
            process.wait_for(1)
            time.sleep(choose.uniform(0, 0.06))
        acked = done + process.kill()
        with closing(RedisCatalog.open(shared.url, shared.namespace, shared.path("a"), home_id="a")) as catalog:
            held = names(catalog)
            assert held in (names_after(acked), names_after(acked + 1))
            for name in newest(catalog, 4):
                assert_whole(catalog, name)
            catalog.check_integrity()
        done = acked if held == names_after(acked) else acked + 1
        other.catch_up()
        assert names(other) == held
    assert done > LOOPS
    assert shared_content(shared.path("a")) == shared_content(shared.path("other"))
    for name in names(other):
        assert_whole(other, name)


@pytest.mark.timeout(180)
def test_kill_9_while_checkpoints_are_made_and_loaded_leaves_every_engine_whole(shared: Engines) -> None:
    choose = random.Random()
    writer = shared.open("writer", FollowLimits(log_records=10**9))
    for step in range(8):
        do(writer, step)
    step, published = 8, 0
    for turn in range(30):

        def make(tell: Callable[[], None]) -> None:
            log = RedisLog(RedisLink(shared.url), shared.namespace)
            tell()
            while True:
                if publish(log, shared.path("writer"), part_bytes=4000):
                    tell()

        def load(tell: Callable[[], None]) -> None:
            catalog = RedisCatalog.open(shared.url, shared.namespace, shared.path("late"), home_id="late")
            tell()
            while True:
                catalog.catch_up()

        with Forked(make) as making, Forked(load) as loading:
            making.wait_for(1)
            loading.wait_for(1)
            for _ in range(choose.randrange(1, 8)):
                do(writer, step)
                step += 1
            if turn % 2:
                making.wait_for(2)
            time.sleep(choose.uniform(0, 0.1))
        published += making.kill() - 1
    with closing(RedisCatalog.open(shared.url, shared.namespace, shared.path("late"), home_id="late")) as late:
        late.check_integrity()
        assert names(late) == names(writer) == names_after(step)
    assert shared_content(shared.path("late")) == shared_content(shared.path("writer"))
    fresh = shared.open("fresh")
    assert names(fresh) == names_after(step)
    assert published >= 15
