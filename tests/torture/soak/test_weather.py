"""weather.py: the faults are real ones, and none is left behind."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import redis

from tests.support.redis_server import redis_server
from tests.torture.soak import weather
from tests.torture.soak.weather import Places, Weather, small_disk


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk) as at:
        if at is None:
            pytest.skip("this user may not mount a file system")
        (at / "chunks").mkdir()
        yield at


def test_a_full_disk_takes_no_byte_and_then_takes_them_again(mount: Path) -> None:
    begin, end = Weather(Places(mount / "chunks", mount=mount), Random(1))._kinds()["disk full"]
    assert begin()
    with pytest.raises(OSError) as refused:
        (mount / "chunks" / "a").write_bytes(bytes(1 << 20))
    assert refused.value.errno == errno.ENOSPC
    end()
    (mount / "chunks" / "a").write_bytes(bytes(1 << 20))


def test_a_read_only_disk_is_writable_again(mount: Path) -> None:
    begin, end = Weather(Places(mount / "chunks", mount=mount), Random(1))._kinds()["disk read-only"]
    assert begin()
    assert os.statvfs(mount).f_flag & os.ST_RDONLY
    end()
    (mount / "chunks" / "a").write_bytes(b"a")


def test_a_damaged_chunk_is_named_and_has_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "one.data").write_bytes(bytes(1 << 18))
    winds = Weather(Places(tmp_path), Random(1))
    begin, _ = winds._kinds()["damaged chunk"]
    assert begin() and winds.damaged == {"one.data"}
    assert (tmp_path / "one.data").read_bytes() != bytes(1 << 18)
    assert (tmp_path / "one.data").stat().st_size == 1 << 18


async def test_faults_come_one_after_the_other_and_redis_answers_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weather, "_BAD_S", (0.01, 0.05))
    monkeypatch.setattr(weather, "_FAIR_S", (0.01, 0.02))
    with redis_server(append_fsync="always") as server:
        winds = Weather(Places(tmp_path, server), Random(1))
        began = time.monotonic()
        assert not winds.was_bad_since(began)
        await winds.blow(began + 2)
        assert winds.was_bad_since(began) and not winds._is_bad
        assert {"redis killed", "redis silent"} <= set(winds.count)
        with server.client() as client:
            assert client.ping()
        client = redis.Redis.from_url(server.url, socket_timeout=5)
        assert client.ping()
        client.close()
